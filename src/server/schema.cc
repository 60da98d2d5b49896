#include "server/schema.h"

#include <charconv>
#include <limits>
#include <nlohmann/json.hpp>
#include <utility>

#include "server/json_fields.h"

namespace kivi {
namespace {

using Json = nlohmann::json;

constexpr int64_t kMostChoices = 128;
constexpr int64_t kMostPrompts = 1024;
constexpr int64_t kMostLogprobs = 20;
constexpr size_t kMostStops = 16;
constexpr size_t kMostStopBytes = 1024;
constexpr int64_t kAnyMost = std::numeric_limits<int64_t>::max();
constexpr const char* kLogprobsWanted = "an integer from 0 to 20";

std::vector<std::string> read_stops(const JsonFields& fields) {
  const Json* value = fields.find("stop");
  std::vector<std::string> stops;
  if (value == nullptr) return stops;
  const auto wanted = fmt::format("a string, or up to {} strings, of 1 to {} bytes", kMostStops, kMostStopBytes);
  const auto add = [&](const Json& stop) {
    if (!stop.is_string()) fields.wrong("stop", wanted);
    stops.push_back(stop.get<std::string>());
    if (stops.back().empty() || stops.back().size() > kMostStopBytes) fields.wrong("stop", wanted);
  };
  if (!value->is_array()) {
    add(*value);
    return stops;
  }
  if (value->size() > kMostStops) fields.wrong("stop", wanted);
  for (const Json& stop : *value) add(stop);
  return stops;
}

std::vector<std::pair<TokenId, float>> read_logit_bias(const JsonFields& fields) {
  const Json* value = fields.find("logit_bias");
  std::vector<std::pair<TokenId, float>> biases;
  if (value == nullptr) return biases;
  if (!value->is_object()) fields.wrong("logit_bias", "an object of token ids and numbers from -100 to 100");
  for (const auto& [key, bias] : value->items()) {
    TokenId id = 0;
    const auto [end, error] = std::from_chars(key.data(), key.data() + key.size(), id);
    if (error != std::errc() || end != key.data() + key.size() || id < 0) {
      refuse("logit_bias", "logit_bias key {}: must be a token id", shown(key));
    }
    if (!bias.is_number() || !(bias.get<double>() >= -100 && bias.get<double>() <= 100)) {
      refuse("logit_bias", "logit_bias {} of token {}: must be a number from -100 to 100", shown(bias), id);
    }
    biases.emplace_back(id, bias.get<float>());
  }
  return biases;
}

SamplingParams read_sampling(const JsonFields& fields) {
  SamplingParams sampling;
  sampling.temperature = fields.number("temperature", 1.0, {0, 2});
  sampling.top_p = fields.number("top_p", 1.0, {0, 1, true});
  sampling.top_k = std::max<int64_t>(0, fields.integer("top_k", 0, -1, kAnyMost));  // -1 is vLLM's "all"
  sampling.min_p = fields.number("min_p", 0.0, {0, 1});
  sampling.repetition_penalty = fields.number("repetition_penalty", 1.0, {0, 100, true});
  sampling.presence_penalty = fields.number("presence_penalty", 0.0, {-2, 2});
  sampling.frequency_penalty = fields.number("frequency_penalty", 0.0, {-2, 2});
  sampling.logit_bias = read_logit_bias(fields);
  return sampling;
}

void read_streaming(const JsonFields& fields, GenerationCall& call) {
  call.stream = fields.flag("stream", false);
  const Json* options = fields.find("stream_options");
  if (options == nullptr) return;
  if (!options->is_object()) fields.wrong("stream_options", "an object");
  if (!call.stream) refuse("stream_options", "stream_options: allowed only with \"stream\": true");
  const JsonFields inner(*options, "stream_options.");
  call.include_usage = inner.flag("include_usage", false);
  call.continuous_usage = inner.flag("continuous_usage_stats", false);
}

void refuse_what_is_not_there(const JsonFields& fields) {
  if (const Json* format = fields.find("response_format")) {
    const auto type = format->is_object() ? format->find("type") : format->end();
    if (!format->is_object() || type == format->end() || *type != "text") {
      refuse("response_format", "response_format {}: only {{\"type\": \"text\"}} is supported", shown(*format));
    }
  }
  const Json* tools = fields.find("tools");
  const Json* choice = fields.find("tool_choice");
  const bool wants_none = choice != nullptr && *choice == "none";
  if (tools != nullptr && !tools->empty() && !wants_none) refuse("tools", "tools: are not supported");
}

// What completions and chats have in common.
void read_common(const JsonFields& fields, GenerationCall& call) {
  call.model = fields.text("model", "");
  call.n = fields.integer("n", 1, 1, kMostChoices);
  call.sampling = read_sampling(fields);
  if (fields.find("seed") != nullptr) {
    call.seed = fields.integer("seed", 0, std::numeric_limits<int64_t>::min(), kAnyMost);
  }
  call.stops = read_stops(fields);
  call.stop_token_ids = fields.ids("stop_token_ids");
  call.includes_stop = fields.flag("include_stop_str_in_output", false);
  call.ignores_eos = fields.flag("ignore_eos", false);
  call.skips_special = fields.flag("skip_special_tokens", true);
  call.min_tokens = fields.integer("min_tokens", 0, 0, kAnyMost);
  if (call.max_tokens && call.min_tokens > *call.max_tokens) {
    fields.wrong("min_tokens", fmt::format("at most max_tokens, {}", *call.max_tokens));
  }
  read_streaming(fields, call);
  refuse_what_is_not_there(fields);
}

PromptInput read_id_list(const Json& list) {
  std::vector<TokenId> ids;
  for (const Json& id : list) {
    if (!id.is_number_integer() || id < 0 || id > std::numeric_limits<TokenId>::max()) {
      refuse("prompt", "prompt has {}: must be a token id, an integer from 0", shown(id));
    }
    ids.push_back(id.get<TokenId>());
  }
  return ids;
}

// A string, a list of strings, a list of ids or a list of id lists.
std::vector<PromptInput> read_prompts(const JsonFields& fields) {
  constexpr const char* kWanted = "a string, a list of strings, a list of token ids or a list of such lists";
  const Json* prompt = fields.find("prompt");
  if (prompt == nullptr) fields.wrong("prompt", kWanted);
  if (prompt->is_string()) return {prompt->get<std::string>()};
  if (!prompt->is_array() || prompt->empty()) fields.wrong("prompt", kWanted);
  if (prompt->front().is_number()) return {read_id_list(*prompt)};
  if (prompt->size() > kMostPrompts) {
    refuse("prompt", "prompt of {} prompts: at most {} in a request", prompt->size(), kMostPrompts);
  }
  std::vector<PromptInput> prompts;
  for (const Json& one : *prompt) {
    if (!one.is_string() && !one.is_array()) fields.wrong("prompt", kWanted);
    prompts.push_back(one.is_string() ? PromptInput(one.get<std::string>()) : read_id_list(one));
  }
  return prompts;
}

std::string read_content(const Json& message, const std::string& where) {
  const auto content = message.find("content");
  if (content == message.end() || content->is_null()) return {};
  if (content->is_string()) return content->get<std::string>();
  if (!content->is_array()) refuse(where, "{}.content {}: must be a string or a list of parts", where, shown(*content));
  std::string text;
  for (const Json& part : *content) {
    const bool is_text =
        part.is_object() && part.value("type", Json()) == "text" && part.contains("text") && part["text"].is_string();
    if (!is_text) {
      refuse(where, "{}.content has {}: only parts {{\"type\": \"text\", \"text\": \"...\"}} are supported", where,
             shown(part));
    }
    text += part["text"].get<std::string>();
  }
  return text;
}

std::vector<ChatMessage> read_messages(const JsonFields& fields) {
  const Json* list = fields.find("messages");
  if (list == nullptr || !list->is_array() || list->empty()) fields.wrong("messages", "a list of at least one message");
  std::vector<ChatMessage> messages;
  for (const Json& message : *list) {
    const std::string where = fmt::format("messages[{}]", messages.size());
    if (!message.is_object()) refuse(where, "{} {}: must be an object with role and content", where, shown(message));
    std::string role = JsonFields(message, where + ".").text("role", "");
    if (role == "developer") role = "system";
    if (role != "system" && role != "user" && role != "assistant") {
      refuse(where + ".role", "{}.role {}: must be system, developer, user or assistant", where, shown(role));
    }
    messages.push_back({std::move(role), read_content(message, where)});
  }
  return messages;
}

}  // namespace

GenerationCall parse_completion(std::string_view body) {
  const Json json = parse_object(body);
  const JsonFields fields(json);
  GenerationCall call;
  call.prompts = read_prompts(fields);
  call.echo = fields.flag("echo", false);
  if (fields.find("max_tokens") != nullptr) {
    call.max_tokens = fields.integer("max_tokens", 0, call.echo ? 0 : 1, kAnyMost);
  }
  if (fields.find("logprobs") != nullptr) {
    if (!fields.find("logprobs")->is_number_integer()) fields.wrong("logprobs", kLogprobsWanted);
    call.n_logprobs = fields.integer("logprobs", 0, 0, kMostLogprobs);
  }
  if (!fields.text("suffix", "").empty()) refuse("suffix", "suffix: is not supported");
  read_common(fields, call);
  return call;
}

GenerationCall parse_chat(std::string_view body) {
  const Json json = parse_object(body);
  const JsonFields fields(json);
  GenerationCall call;
  call.is_chat = true;
  call.messages = read_messages(fields);
  for (const char* name : {"max_tokens", "max_completion_tokens"}) {
    if (fields.find(name) != nullptr) call.max_tokens = fields.integer(name, 0, 1, kAnyMost);
  }
  const int64_t n_top = fields.integer("top_logprobs", 0, 0, kMostLogprobs);
  if (fields.flag("logprobs", false)) {
    call.n_logprobs = n_top;
  } else if (n_top > 0) {
    refuse("top_logprobs", "top_logprobs {}: allowed only with \"logprobs\": true", n_top);
  }
  read_common(fields, call);
  return call;
}

TokenizeCall parse_tokenize(std::string_view body) {
  const Json json = parse_object(body);
  const JsonFields fields(json);
  TokenizeCall call{.model = fields.text("model", "")};
  if (fields.find("messages") != nullptr) {
    call.messages = read_messages(fields);
  } else if (fields.find("prompt") != nullptr) {
    call.prompt = fields.text("prompt", "");
  } else {
    fields.wrong("prompt", "a string, or messages a list of messages");
  }
  call.add_special_tokens = fields.flag("add_special_tokens", true);
  return call;
}

DetokenizeCall parse_detokenize(std::string_view body) {
  const Json json = parse_object(body);
  const JsonFields fields(json);
  if (fields.find("tokens") == nullptr) fields.wrong("tokens", "a list of token ids");
  return {.model = fields.text("model", ""), .tokens = fields.ids("tokens")};
}

}  // namespace kivi
