#include "server/served_model.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "server/api_error.h"

namespace kivi {
namespace {

constexpr int64_t kCompletionTokens = 16;  // of a completion that does not say

void check_model(const std::string& asked, const ServedModel& model) {
  if (asked.empty() || asked == model.name) return;
  throw ApiError{.status = 404,
                 .message = fmt::format("model '{}': is not served here; use '{}'", asked, model.name),
                 .param = "model",
                 .code = "model_not_found"};
}

void check_ids(std::span<const TokenId> ids, const char* param, const ServedModel& model) {
  const TokenId size = model.tokenizer->vocab_size();
  for (const TokenId id : ids) {
    if (id < 0 || id >= size) refuse(param, "{} has token {}: must be from 0 to {}", param, id, size - 1);
  }
}

std::vector<TokenId> encode_messages(std::span<const ChatMessage> messages, const ServedModel& model) {
  try {
    return encode_chat(*model.tokenizer, model.chat_format, messages, model.default_system_prompt);
  } catch (const Error& error) {
    refuse("messages", "messages: {}", error.what());
  }
}

// A text so long that it cannot fit is not tokenised: no token is longer than kMostTokenBytes by far.
void check_length(std::string_view text, const char* param, const ServedModel& model) {
  constexpr int64_t kMostTokenBytes = 1024;
  if (std::ssize(text) > kMostTokenBytes * model.max_model_len) {
    refuse(param, "{} of {} bytes: longer than the context of {} tokens can be; shorten it", param, text.size(),
           model.max_model_len);
  }
}

std::vector<TokenId> encode_prompt(const PromptInput& prompt, const ServedModel& model) {
  if (const auto* ids = std::get_if<std::vector<TokenId>>(&prompt)) {
    check_ids(*ids, "prompt", model);
    return *ids;
  }
  const auto& text = std::get<std::string>(prompt);
  check_length(text, "prompt", model);
  return model.tokenizer->encode(text, true, true);
}

// Tokens of output, or an ApiError that says what does not fit.
int64_t output_limit(const GenerationCall& call, int64_t n_prompt, const ServedModel& model) {
  const char* param = call.is_chat ? "messages" : "prompt";
  const int64_t n_left = model.max_model_len - n_prompt;
  if (n_prompt == 0) refuse(param, "{}: has no tokens; give at least one", param);
  if (n_left < 1 || call.max_tokens.value_or(1) > n_left) {
    throw ApiError{
        .message = fmt::format("this model's maximum context length is {} tokens, but the {} {} {} tokens and "
                               "max_tokens is {}; shorten one of them",
                               model.max_model_len, param, call.is_chat ? "have" : "has", n_prompt,
                               call.max_tokens ? std::to_string(*call.max_tokens) : "not given"),
        .param = param,
        .code = "context_length_exceeded"};
  }
  if (call.max_tokens) return std::max<int64_t>(1, *call.max_tokens);
  return call.is_chat ? n_left : std::min(n_left, kCompletionTokens);
}

std::vector<std::vector<TokenId>> encode_prompts(const GenerationCall& call, const ServedModel& model) {
  if (call.is_chat) {
    for (const ChatMessage& message : call.messages) check_length(message.content, "messages", model);
    return {encode_messages(call.messages, model)};
  }
  std::vector<std::vector<TokenId>> prompts;
  for (const PromptInput& prompt : call.prompts) prompts.push_back(encode_prompt(prompt, model));
  return prompts;
}

std::vector<TokenId> stop_ids(const GenerationCall& call, const ServedModel& model) {
  std::vector<TokenId> ids = call.stop_token_ids;
  const std::vector<TokenId>& ends = model.tokenizer->end_ids();
  if (!call.ignores_eos) ids.insert(ids.end(), ends.begin(), ends.end());
  return ids;
}

// Where control tokens stand: chats and their templates begin and end turns with them.
std::vector<int64_t> cuts_of(std::span<const TokenId> prompt, const Tokenizer& tokenizer) {
  std::vector<int64_t> cuts;
  for (size_t i = 1; i < prompt.size(); ++i) {
    if (tokenizer.token_bytes(prompt[i]).empty()) cuts.push_back(static_cast<int64_t>(i));
  }
  return cuts;
}

}  // namespace

ServedModel describe(const Model& model, std::string name, int64_t max_model_len) {
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  ServedModel served{.name = std::move(name),
                     .tokenizer = model.tokenizer.get(),
                     .chat_format = model.chat_format,
                     .default_system_prompt = model.default_system_prompt,
                     .max_model_len = max_model_len,
                     .created = std::chrono::duration_cast<std::chrono::seconds>(now).count()};
  if (model.file != nullptr) {
    served.chat_template = model.file->find_string("tokenizer.chat_template").value_or("");
    const auto pad = model.file->find_int("tokenizer.ggml.padding_token_id");
    if (pad) served.pad = static_cast<TokenId>(*pad);
  }
  return served;
}

std::vector<Request> to_requests(const GenerationCall& call, const ServedModel& model, uint64_t seed) {
  check_model(call.model, model);
  check_ids(call.stop_token_ids, "stop_token_ids", model);
  for (const auto& [id, bias] : call.sampling.logit_bias) check_ids({&id, 1}, "logit_bias", model);
  std::vector<Request> requests;
  for (std::vector<TokenId>& prompt : encode_prompts(call, model)) {
    Request request{.max_new_tokens = output_limit(call, std::ssize(prompt), model),
                    .stop_ids = stop_ids(call, model),
                    .min_new_tokens = call.min_tokens,
                    .sampling = call.sampling,
                    .n_logprobs = call.n_logprobs,
                    .scores_prompt = call.echo && call.n_logprobs.has_value()};
    request.cuts = cuts_of(prompt, *model.tokenizer);
    request.prompt = std::move(prompt);
    request.sampling.seed = call.seed ? static_cast<uint64_t>(*call.seed) : seed;
    requests.push_back(std::move(request));
  }
  return requests;
}

std::vector<TokenId> tokenize(const TokenizeCall& call, const ServedModel& model) {
  check_model(call.model, model);
  if (!call.prompt) return encode_messages(call.messages, model);
  return model.tokenizer->encode(*call.prompt, call.add_special_tokens, true);
}

std::string detokenize(const DetokenizeCall& call, const ServedModel& model) {
  check_model(call.model, model);
  check_ids(call.tokens, "tokens", model);
  return model.tokenizer->decode(call.tokens, true);
}

}  // namespace kivi
