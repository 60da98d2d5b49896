"use strict";

const $ = (id) => document.getElementById(id);
const settings = ["system", "temperature", "max-tokens", "api-key"];
const conversation = [];  // {role, content}, without the system prompt
let running = null;       // the AbortController of the answer that streams
let modelName = "";

function headers() {
  const key = $("api-key").value.trim();
  return { "Content-Type": "application/json", ...(key ? { Authorization: `Bearer ${key}` } : {}) };
}

// ---- conversation ----

function addMessage(role, text) {
  $("welcome").hidden = true;
  const item = document.createElement("li");
  item.className = role;
  const who = document.createElement("span");
  who.className = "visually-hidden";
  who.textContent = role === "user" ? "You: " : "Answer: ";
  const body = document.createElement("span");
  body.className = "text";
  body.textContent = text;
  item.append(who, body);
  $("messages").append(item);
  item.scrollIntoView({ block: "end" });
  return item;
}

function addNote(item, text, isError) {
  const note = document.createElement("span");
  note.className = isError ? "note error" : "note";
  note.textContent = text;
  item.append(note);
  item.scrollIntoView({ block: "end" });
}

function requestBody() {
  const system = $("system").value.trim();
  const messages = system ? [{ role: "system", content: system }, ...conversation] : conversation;
  const body = { messages, stream: true, stream_options: { include_usage: true } };
  if ($("temperature").value !== "") body.temperature = Number($("temperature").value);
  if ($("max-tokens").value !== "") body.max_tokens = Number($("max-tokens").value);
  return JSON.stringify(body);
}

async function errorOf(response) {
  try {
    return (await response.json()).error.message;
  } catch {
    return `the server answered ${response.status}`;
  }
}

// The JSON of a stream's events, one after the other.
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      if (part.startsWith("data: ") && part !== "data: [DONE]") yield JSON.parse(part.slice(6));
    }
  }
}

async function streamInto(item, answer) {
  const body = item.querySelector(".text");
  const response = await fetch("v1/chat/completions", {
    method: "POST", headers: headers(), body: requestBody(), signal: running.signal,
  });
  if (!response.ok) throw new Error(await errorOf(response));
  const main = document.querySelector("main");
  for await (const event of events(response)) {
    if (event.error) throw new Error(event.error.message);
    if (event.usage) answer.nTokens = event.usage.completion_tokens;
    for (const choice of event.choices) {
      const text = choice.delta.content ?? "";
      if (text && !answer.first) answer.first = performance.now();
      answer.content += text;
      answer.finish = choice.finish_reason ?? answer.finish;
    }
    const isAtEnd = main.scrollHeight - main.scrollTop - main.clientHeight < 80;
    body.textContent = answer.content;
    if (isAtEnd) main.scrollTop = main.scrollHeight;
  }
}

function noteOf(answer) {
  const seconds = (performance.now() - answer.first) / 1000;
  const speed = answer.nTokens > 1 && seconds > 0 ? ` · ${((answer.nTokens - 1) / seconds).toFixed(1)} tokens/s` : "";
  const cut = answer.finish === "length" ? " · cut off at the most tokens" : "";
  return `${answer.nTokens} tokens${speed}${cut}`;
}

async function ask(question) {
  addMessage("user", question);
  conversation.push({ role: "user", content: question });
  const item = addMessage("assistant", "");
  item.classList.add("busy");
  running = new AbortController();
  setBusy(true);
  const answer = { content: "", nTokens: 0, finish: null, first: 0 };
  try {
    await streamInto(item, answer);
    addNote(item, noteOf(answer));
    $("status").textContent = `Answer: ${answer.content}`;
  } catch (error) {
    const isStopped = error.name === "AbortError";
    addNote(item, isStopped ? "stopped" : error.message, !isStopped);
    $("status").textContent = isStopped ? "Stopped." : `Error: ${error.message}`;
  }
  // A turn without an answer is asked again with the next one, not kept.
  if (answer.content) conversation.push({ role: "assistant", content: answer.content });
  else conversation.pop();
  item.classList.remove("busy");
  running = null;
  setBusy(false);
}

function setBusy(isBusy) {
  $("send").hidden = isBusy;
  $("stop").hidden = !isBusy;
  if (!isBusy) $("question").focus();
}

// ---- what the cache takes ----

const units = ["B", "KiB", "MiB", "GiB", "TiB"];
function bytes(n) {
  let unit = 0;
  for (; n >= 1024 && unit < units.length - 1; ++unit) n /= 1024;
  return `${n.toFixed(unit === 0 || n >= 100 ? 0 : 1)} ${units[unit]}`;
}

let before = null;  // {time, tokens}
function showMetrics(text) {
  const values = new Map();
  for (const line of text.split("\n")) {
    const found = /^([a-z0-9_:]+)(?:\{[^}]*\})? (\S+)/i.exec(line);
    if (found) values.set(found[1], Number(found[2]));
  }
  const now = values.get("kivi:kv_bytes_packed") + values.get("kivi:kv_bytes_window");
  const full = values.get("kivi:kv_bytes_16bit");
  $("bytes-now").textContent = bytes(now);
  $("bytes-16").textContent = bytes(full);
  $("bits").textContent = full > 0 ? values.get("kivi:kv_bits_per_element").toFixed(1) : "–";
  $("bar-now").style.width = full > 0 ? `${(100 * now) / full}%` : "0";
  $("running").textContent = values.get("vllm:num_requests_running");
  $("waiting").textContent = values.get("vllm:num_requests_waiting");
  const moment = { time: performance.now(), tokens: values.get("vllm:generation_tokens_total") };
  if (before) $("speed").textContent = ((moment.tokens - before.tokens) / ((moment.time - before.time) / 1000)).toFixed(1);
  before = moment;
}

async function poll() {
  try {
    if (!document.hidden) showMetrics(await (await fetch("metrics")).text());
    if (!modelName) await showModel();
  } catch {
    $("model").textContent = "the server does not answer";
    modelName = "";
  }
  setTimeout(poll, 1000);
}

async function showModel() {
  const response = await fetch("v1/models", { headers: headers() });
  if (!response.ok) {
    $("model").textContent = response.status === 401 ? "give the API key in Settings" : await errorOf(response);
    return;
  }
  const model = (await response.json()).data[0];
  modelName = model.id;
  $("model").textContent = `${model.id} · ${model.max_model_len.toLocaleString("en")} tokens of context`;
}

// ---- controls ----

function grow() {
  const field = $("question");
  field.style.height = "auto";
  field.style.height = `${field.scrollHeight + 2}px`;
}

$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  const question = $("question").value.trim();
  if (!question || running) return;
  $("question").value = "";
  grow();
  ask(question);
});
$("question").addEventListener("input", grow);
$("question").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  $("ask").requestSubmit();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && running) running.abort();
});
$("stop").addEventListener("click", () => running?.abort());
$("new-chat").addEventListener("click", () => {
  running?.abort();
  conversation.length = 0;
  $("messages").replaceChildren();
  $("welcome").hidden = false;
  $("question").focus();
});
$("show-settings").addEventListener("click", () => {
  const isHidden = !$("settings").hidden;
  $("settings").hidden = isHidden;
  $("show-settings").setAttribute("aria-expanded", String(!isHidden));
  if (!isHidden) $("system").focus();
});
$("settings").addEventListener("submit", (event) => event.preventDefault());
for (const id of settings) {
  // The key is forgotten with the tab.
  const store = id === "api-key" ? sessionStorage : localStorage;
  $(id).value = store.getItem(`kivi-${id}`) ?? $(id).value;
  $(id).addEventListener("change", () => {
    store.setItem(`kivi-${id}`, $(id).value);
    if (id === "api-key") modelName = "";
  });
}
poll();
