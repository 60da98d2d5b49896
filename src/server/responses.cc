#include "server/responses.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "server/json_fields.h"
#include "text/unicode.h"

namespace kivi {
namespace {

using Json = nlohmann::ordered_json;

constexpr double kLowestLogprob = -9999.0;  // JSON has no infinity

Json number(float logprob) {
  return std::isfinite(logprob) ? Json(logprob) : Json(kLowestLogprob);
}

// As completions have them: lists side by side.
Json completion_logprobs(const Tokenizer& tokenizer, std::span<const OutputToken> tokens) {
  Json texts = Json::array();
  Json logprobs = Json::array();
  Json tops = Json::array();
  Json offsets = Json::array();
  for (const OutputToken& token : tokens) {
    texts.push_back(token_text(tokenizer, token.id));
    offsets.push_back(token.text_offset);
    if (!token.score) {
      logprobs.push_back(nullptr);
      tops.push_back(nullptr);
      continue;
    }
    Json top = Json::object();
    for (const TokenLogprob& one : token.score->top) top.emplace(token_text(tokenizer, one.id), number(one.logprob));
    top.emplace(texts.back(), number(token.score->token.logprob));  // no effect if it is there
    logprobs.push_back(number(token.score->token.logprob));
    tops.push_back(std::move(top));
  }
  return {{"text_offset", std::move(offsets)},
          {"token_logprobs", std::move(logprobs)},
          {"tokens", std::move(texts)},
          {"top_logprobs", std::move(tops)}};
}

Json chat_token(const Tokenizer& tokenizer, const TokenLogprob& token) {
  const std::string bytes = tokenizer.token_bytes(token.id, true);
  Json numbers = Json::array();
  for (const char byte : bytes) numbers.push_back(static_cast<unsigned char>(byte));
  return {
      {"token", token_text(tokenizer, token.id)}, {"logprob", number(token.logprob)}, {"bytes", std::move(numbers)}};
}

// As chats have them: a list of objects.
Json chat_logprobs(const Tokenizer& tokenizer, std::span<const OutputToken> tokens) {
  Json content = Json::array();
  for (const OutputToken& token : tokens) {
    if (!token.score) continue;
    Json entry = chat_token(tokenizer, token.score->token);
    Json top = Json::array();
    for (const TokenLogprob& one : token.score->top) top.push_back(chat_token(tokenizer, one));
    entry["top_logprobs"] = std::move(top);
    content.push_back(std::move(entry));
  }
  return {{"content", std::move(content)}, {"refusal", nullptr}};
}

Json logprobs(const AnswerHead& head, const Tokenizer& tokenizer, std::span<const OutputToken> tokens) {
  if (!head.scores) return nullptr;
  return head.is_chat ? chat_logprobs(tokenizer, tokens) : completion_logprobs(tokenizer, tokens);
}

Json to_json(const Usage& usage) {
  return {{"prompt_tokens", usage.n_prompt},
          {"completion_tokens", usage.n_output},
          {"total_tokens", usage.n_prompt + usage.n_output},
          {"prompt_tokens_details", {{"cached_tokens", usage.n_reused}}}};
}

Json frame(const AnswerHead& head, bool is_stream) {
  const char* chat_object = is_stream ? "chat.completion.chunk" : "chat.completion";
  return {{"id", head.id},
          {"object", head.is_chat ? chat_object : "text_completion"},
          {"created", head.created},
          {"model", head.model}};
}

std::string event(const AnswerHead& head, Json choices, const std::optional<Usage>& usage) {
  Json json = frame(head, true);
  json["choices"] = std::move(choices);
  if (usage) json["usage"] = to_json(*usage);
  return sse_event(dump(json));
}

}  // namespace

std::string sse_event(std::string_view json) {
  return fmt::format("data: {}\n\n", json);
}

std::string token_text(const Tokenizer& tokenizer, TokenId id) {
  std::string bytes = tokenizer.token_bytes(id, true);
  if (valid_utf8_prefix(bytes) == bytes.size()) return bytes;
  std::string text = "bytes:";
  for (const char byte : bytes) text += fmt::format("\\x{:02x}", static_cast<unsigned char>(byte));
  return text;
}

std::string AnswerPrinter::answer(std::span<const FinishedChoice> choices, const Usage& usage) const {
  Json list = Json::array();
  for (const FinishedChoice& choice : choices) {
    Json json = {{"index", list.size()}};
    if (head_.is_chat) {
      json["message"] = {{"role", "assistant"}, {"content", choice.output.text}, {"refusal", nullptr}};
    } else {
      json["text"] = choice.output.text;
    }
    json["logprobs"] = logprobs(head_, *tokenizer_, choice.output.tokens);
    json["finish_reason"] = choice.finish_reason;
    list.push_back(std::move(json));
  }
  Json json = frame(head_, false);
  json["choices"] = std::move(list);
  json["usage"] = to_json(usage);
  return dump(json);
}

std::string AnswerPrinter::role_event(int64_t choice_idx, const std::optional<Usage>& usage) const {
  const Json choice = {{"index", choice_idx},
                       {"delta", {{"role", "assistant"}, {"content", ""}}},
                       {"logprobs", nullptr},
                       {"finish_reason", nullptr}};
  return event(head_, Json::array({choice}), usage);
}

std::string AnswerPrinter::delta_event(int64_t choice_idx, const OutputDelta& delta,
                                       const std::optional<std::string>& finish_reason,
                                       const std::optional<Usage>& usage) const {
  Json choice = {{"index", choice_idx}};
  if (head_.is_chat) {
    choice["delta"] = Json::object();
    if (!delta.empty()) choice["delta"]["content"] = delta.text;
  } else {
    choice["text"] = delta.text;
  }
  choice["logprobs"] = delta.tokens.empty() ? Json() : logprobs(head_, *tokenizer_, delta.tokens);
  choice["finish_reason"] = finish_reason ? Json(*finish_reason) : Json();
  return event(head_, Json::array({std::move(choice)}), usage);
}

std::string AnswerPrinter::usage_event(const Usage& usage) const {
  return event(head_, Json::array(), usage);
}

}  // namespace kivi
