// The report: what the study found, in the order in which a reader asks.

const study = JSON.parse(document.getElementById("study").textContent);
const report = document.getElementById("report");
const settings = Object.fromEntries(study.quality.settings.map((s) => [s.name, s]));
const sideNames = { key_before_rope: "keys before RoPE", key: "keys", value: "values" };

function add(html, parent = report) {
  parent.insertAdjacentHTML("beforeend", html);
  return parent.lastElementChild;
}
const section = (title, text) => add(`<section><h2>${escapeHtml(title)}</h2>${text.map((t) => `<p>${t}</p>`).join("")}</section>`);

// cells: HTML, or {html, class}.
function table(parent, caption, header, rows) {
  const cell = (c) => `<td class="${c?.class ?? ""}">${c?.html ?? c}</td>`;
  const body = rows.map((r) => `<tr class="${r.class ?? ""}">${r.cells.map(cell).join("")}</tr>`);
  const head = header.map((h) => `<th scope="col">${h}</th>`);
  const label = `aria-label="${escapeHtml(caption)}"`;
  add(`<p class="quiet caption">${escapeHtml(caption)}</p>
    <div class="scroll" tabindex="0" role="region" ${label}><table ${label}><thead><tr>${head.join("")}</tr></thead>
    <tbody>${body.join("")}</tbody></table></div>`, parent);
}

const interval = (i, format) => `${format(i.low)} to ${format(i.high)}`;
const gib = (bytes) => `${digits(bytes / 2 ** 30, 3)} GiB`;
const integer = (x) => Math.round(x).toLocaleString("en");

// What a setting loses, in every table of settings.
const lossHeader = ["loss", "95 %", "KL", "same top token"];
const lossCells = (s) => [percent(s.loss.mean), interval(s.loss, change), digits(s.kl.mean, 3), `${(100 * s.top1.mean).toFixed(1)} %`];

function addHead() {
  const { model, text, chunks } = study;
  document.title = `KV cache study: ${model.name}`;
  add(`<h1>KV cache study: ${escapeHtml(model.name)}</h1>`);
  add(`<p class="quiet">${model.n_layers} layers, ${model.n_heads} query and ${model.n_kv_heads} KV heads of ${model.head_dim};
    ${chunks.n} chunks of ${integer(chunks.context)} tokens of ${escapeHtml(text.name)}; ${escapeHtml(study.device)}</p>`);
  const r = study.recommendation;
  const limit = `${digits(100 * r.max_loss, 3)} %`;
  if (r.setting === null) {
    add(`<div class="card"><p><strong>No cache stays under a loss of ${limit}.</strong></p></div>`);
    return;
  }
  const chosen = r.candidates.find((c) => c.setting === r.setting);
  const f16 = r.candidates.reduce((a, b) => (a.bytes_per_token > b.bytes_per_token ? a : b));
  add(`<div class="card"><p><strong>Use <code>--kv ${escapeHtml(r.setting)}</code></strong>: the smallest cache that loses less than
    ${limit} of perplexity here (${percent(chosen.loss.mean)}; 95 % interval ${interval(chosen.loss, change)} %).</p>
    <p>${integer(chosen.bytes_per_token)} bytes a token, ${digits(f16.bytes_per_token / chosen.bytes_per_token, 2)} times fewer than 16 bits;
    ${gib(r.memory_bytes)} hold ${integer(chosen.context_in_memory)} tokens (the model was made for ${integer(r.model_context)}).</p>
    ${r.is_certain ? "" : `<p>${
      chosen.loss.low === chosen.loss.high ? "One chunk tells little" : "The interval goes beyond the limit"}: a longer
      <code>--text</code>, or more <code>--tokens</code>, makes it surer.</p>`}</div>`);
}

function addPresets() {
  const r = study.recommendation;
  const box = section("Which cache", [
    `Every token goes through decoding, so each query sees just the cache that generating text shows it; the second half of each
     chunk is scored. Intervals are of 95 %, over chunks. The loss is perplexity's, against 16 bits on the same chunks.
     KL, the distance of the predicted distributions from those of 16 bits, is the steadier measure.`]);
  const rows = r.candidates.map((c) => {
    const s = settings[c.setting];
    return {
      class: c.setting === r.setting ? "chosen" : "",
      cells: [escapeHtml(c.setting), ...lossCells(s), integer(c.bytes_per_token), integer(c.context_in_memory), digits(s.bits_per_element, 3),
        digits(s.effective_bits_per_element, 3), digits(s.perplexity, 4)],
    };
  });
  table(box, `Presets; effective bits have the 16-bit windows in them, after ${integer(study.chunks.context)} tokens`,
    ["cache", ...lossHeader, "bytes/token", `tokens in ${gib(r.memory_bytes)}`, "bits", "effective bits", "perplexity"],
    rows);
  const measured = r.candidates.map((c) => settings[c.setting]).filter((s) => s.kl.mean > 0);
  add("<h3>KL to 16 bits, nats per token, logarithmic</h3>", box);
  barChart(box, "KL to 16 bits of every preset", measured.map((s) => ({ label: s.name, ...s.kl, isMarked: s.name === r.setting })), "nats");
}

const isPackedFormat = (row) => row.keys === "channel" && row.values === "token";

function addAxes() {
  const box = section("Which axis", [
    `Keys have channels that are large for every token, values do not: so the format has groups of tokens of one channel for keys
     and groups of channels of one token for values. The other choices are measured by rounding a 16-bit cache in the same way.
     With the window, the newest tokens stay in 16 bits. The paper's Tables 1 and 3, as perplexity.`]);
  const rows = study.quality.axes.map((row) => {
    const s = settings[row.setting];
    return {
      class: isPackedFormat(row) ? "chosen" : "",
      cells: [`K per ${row.keys}, V per ${row.values}`, row.bits, row.window ? "yes" : "no", ...lossCells(s), digits(s.perplexity, 4)],
    };
  });
  table(box, "Axes; marked: those of the packed format", ["groups", "bits", "window", ...lossHeader, "perplexity"], rows);
  add("<h3>KL to 16 bits, nats per token, logarithmic; green: the packed format</h3>", box);
  barChart(box, "KL to 16 bits of every choice of axes", study.quality.axes.map((row) => ({
    label: `K per ${row.keys}, V per ${row.values}; ${row.bits} bits${row.window ? ", window" : ""}`,
    ...settings[row.setting].kl, isMarked: isPackedFormat(row) })), "nats");
}

function addSizes() {
  const box = section("Which group, which window", [
    `<code>kivi2</code> with one setting changed. Smaller groups cost bits for their scales (32/G per number); a longer window costs
     16-bit tokens, whose share falls as the text grows.`]);
  const columns = add('<div class="columns"></div>', box);
  const one = (rows, title, label) => {
    const points = rows.map((row, i) => {
      const s = settings[row.setting];
      return { x: i, y: s.kl.mean, low: Math.max(0, s.kl.low), high: s.kl.high,
        title: `${row.value}: KL ${digits(s.kl.mean, 3)}, loss ${percent(s.loss.mean)}` };
    });
    const cell = add(`<div><h3>${title}</h3></div>`, columns);
    lineChart(cell, `KL by ${label}`, () => [{ points }],
      { xLabel: label, yLabel: "KL, nats", xTicks: rows.map((_, i) => i), xNames: rows.map((r) => r.value) });
  };
  one(study.quality.group_size, "Group size G, R = 128", "tokens or channels of a group");
  one(study.quality.residual, "Window R, G = 32", "tokens in 16 bits");
  const rows = [["group_size", "G"], ["residual", "R"]].flatMap(([name, letter]) => study.quality[name].map((row) => {
    const s = settings[row.setting];
    return { cells: [`${letter} = ${row.value}`, ...lossCells(s), digits(s.bits_per_element, 3), digits(s.effective_bits_per_element, 3),
      digits(s.perplexity, 4)] };
  }));
  table(box, "Groups and windows", ["setting", ...lossHeader, "bits", "effective bits", "perplexity"], rows);
}

// A menu of the different ones of `values`.
function choose(parent, name, values) {
  const options = [...new Set(values)].map((v) => `<option>${v}</option>`);
  return add(`<label>${name} <select>${options.join("")}</select></label>`, parent).querySelector("select");
}

function addMaps() {
  const box = section("What is in the cache", [
    `Magnitudes: tokens from top to bottom, channels from left to right, lighter is larger (by the square root). Columns that are light
     from top to bottom are outlier channels.`]);
  const controls = add('<div class="controls"></div>', box);
  const layer = choose(controls, "Layer", study.maps.map((m) => m.layer));
  const head = choose(controls, "KV head", study.maps.map((m) => m.head));
  const columns = add('<div class="columns"></div>', box);
  const show = () => {
    columns.replaceChildren();
    for (const map of study.maps.filter((m) => m.layer === Number(layer.value) && m.head === Number(head.value))) {
      const channels = map.bins[0].map((_, c) => map.bins.reduce((sum, bin) => sum + bin[c], 0));
      const top = channels.indexOf(Math.max(...channels));
      const largest = Math.max(...map.bins.flat());
      const text = `${sideNames[map.side]}: up to ${digits(largest, 3)}; largest channel ${top}`;
      const figure = add(`<figure><canvas role="img" aria-label="Magnitudes of ${text}"></canvas><figcaption>${text};
        a row is ${map.tokens_per_bin} tokens</figcaption></figure>`, columns);
      heatMap(figure.querySelector("canvas"), map.bins, largest);
    }
  };
  layer.addEventListener("change", show);
  head.addEventListener("change", show);
  show();
}

const byLayer = (value) => ({ points: study.layers.map((l) => ({ x: l.layer, y: value(l), title: `layer ${l.layer}: ${digits(value(l), 3)}` })) });
const mean = (list) => list.reduce((a, b) => a + b, 0) / list.length;

function addOutliers() {
  const sides = Object.keys(sideNames);
  const stability = (side) => study.layers.map((l) => l.sides[side].stability);
  const stable = (side) => (stability(side)[0] === null ? "?" : `${Math.round(100 * mean(stability(side)))} %`);
  const box = section("Outlier channels", [
    `The mean magnitude of a head's largest channel over the median of its channels, mean over heads. Of the largest sixteenth of channels in one
     chunk of text, ${stable("key")} (keys) and ${stable("value")} (values) are among the largest in another.`]);
  add(key(Object.values(sideNames)), box);
  lineChart(box, "Ratio of the largest channel to the median, by layer", () => sides.map((side) => byLayer((l) => l.sides[side].outlier_ratio)),
    { xLabel: "layer", yLabel: "largest channel / median" });
  const rows = [...study.layers].sort((a, b) => b.sides.key.largest_outlier_ratio - a.sides.key.largest_outlier_ratio).slice(0, 5);
  const named = (o) => `head ${o.head}, channel ${o.channel}: ${digits(o.ratio, 3)}`;
  table(box, "The five layers with the largest key channels", ["layer", "keys, largest", "keys, second", "values, largest"],
    rows.map((l) => ({ cells: [l.layer, named(l.sides.key.outliers[0]), named(l.sides.key.outliers[1]), named(l.sides.value.outliers[0])] })));
}

function addSinks() {
  const counts = study.layers[0].attention.mass_of_first.map((m) => m[0]);
  const share = (i) => `${Math.round(100 * mean(study.layers.map((l) => l.attention.mass_of_first[i][1])))} %`;
  const box = section("The first tokens", [
    `Attention that later tokens pay to the first ones (sinks): the first token alone gets ${share(0)} on average over layers. What
     happens to it reaches every later token; presets with sinks keep it in 16 bits.`]);
  const columns = add('<div class="columns"></div>', box);
  const left = add(`<div><h3>Attention on the first tokens</h3>${key(counts.map((n) => (n === 1 ? "first token" : `first ${n}`)))}</div>`, columns);
  lineChart(left, "Part of attention on the first tokens, by layer", () => counts.map((_, i) => byLayer((l) => l.attention.mass_of_first[i][1])),
    { xLabel: "layer", yLabel: "part of attention" });
  const right = add(`<div><h3>The first token's length</h3>${key(["keys", "values"])}</div>`, columns);
  lineChart(right, "The first token's norm over the median norm, by layer",
    () => ["key", "value"].map((side) => byLayer((l) => l.sides[side].first_token)),
    { xLabel: "layer", yLabel: "norm / median norm" });
}

function addErrors() {
  const { rows, paper, sparsity } = study.errors;
  const box = section("What rounding does", [
    `All tokens rounded, groups of 32, no window. Relative Frobenius errors: of the rows themselves (reconstruction), of the
     probabilities that they give (score), of attention's output. Means over heads, layers and chunks.
     ${(100 * sparsity).toFixed(1)} % of the probabilities are below a hundredth of the largest of their query (paper: ${paper.sparsity} %):
     that is why a value's error should stay in its token.`]);
  const inPercent = (x) => (x === undefined || x === 0 ? "" : `${(100 * x).toFixed(1)} %`);
  const quoted = (x) => ({ class: "paper", html: x === undefined ? "" : x.toFixed(2) });
  const name = (r) => `${r.side === "key" ? "K" : "V"} per ${r.axis}`;
  table(box, `Errors; paper: Llama-2-13B at 2 bits, as printed there`,
    ["groups", "bits", "reconstruction", "paper", "score", "paper", "output", "paper"],
    rows.map((r) => {
      const p = paper.rows.find((q) => q.side === r.side && q.axis === r.axis && q.bits === r.bits) ?? {};
      return { cells: [name(r), r.bits, inPercent(r.reconstruction), quoted(p.reconstruction), inPercent(r.score), quoted(p.score),
        inPercent(r.output), quoted(p.output)] };
    }));
  addLayerErrors(box, rows, name, inPercent);
}

// By layer: a chart and a table of the measure and the bits that are chosen.
function addLayerErrors(box, rows, name, inPercent) {
  add("<h3>By layer</h3>", box);
  const controls = add('<div class="controls"></div>', box);
  const measures = ["output", "reconstruction", "score"];
  const measure = choose(controls, "Error of", measures);
  const bits = choose(controls, "Bits", rows.map((r) => r.bits));
  const place = { reconstruction: 0, score: 1, output: 2 };
  const chosen = () => rows.filter((r) => r.bits === Number(bits.value) && r[measure.value] > 0);
  const value = (r, layer) => r.layers[layer][place[measure.value]];
  add(key(rows.filter((r) => r.bits === rows[0].bits).map(name)), box);
  const redraw = lineChart(box, "Relative error by layer", () => chosen().map((r) => ({
    points: r.layers.map((_, i) => ({ x: i, y: value(r, i), title: `${name(r)}, layer ${i}: ${inPercent(value(r, i))}` })) })),
    { xLabel: "layer", yLabel: "relative error, logarithmic", isLog: true });
  const details = add("<details><summary>As a table</summary><div></div></details>", box).lastElementChild;
  const show = () => {
    redraw();
    details.replaceChildren();
    table(details, `Relative error, ${measure.value}, ${bits.value} bits`, ["layer", ...chosen().map(name)],
      study.layers.map((_, i) => ({ cells: [i, ...chosen().map((r) => inPercent(value(r, i)))] })));
  };
  measure.addEventListener("change", show);
  bits.addEventListener("change", show);
  show();
}

function addMethod() {
  const { model, text } = study;
  const box = section("How it was measured", []);
  const rows = [["Model", `${model.file}, ${model.quantisation}`], ["sha256", model.sha256],
    ["Text", `${text.name}, ${integer(text.n_tokens)} tokens`], ["sha256", text.sha256],
    ["Chunks", `${study.chunks.n} of ${integer(study.chunks.context)} tokens, keys and values of the first ${study.chunks.captured} looked at`],
    ["Device", study.device === study.host_device ? study.device : `${study.device}; keys, values and axes on ${study.host_device}`],
    ["kivi", `${study.kivi_version}${study.is_quick ? ", --quick" : ""}`]];
  add(`<dl>${rows.map(([name, value]) => `<dt>${name}</dt><dd>${escapeHtml(value)}</dd>`).join("")}</dl>`, box);
}

for (const part of [addHead, addPresets, addAxes, addSizes, addMaps, addOutliers, addSinks, addErrors, addMethod]) part();
redrawAll();
let width = innerWidth;
addEventListener("resize", () => {
  if (innerWidth === width) return;
  width = innerWidth;
  redrawAll();
});
