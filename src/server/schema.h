// OpenAI's requests, with vLLM's additions, as values. Reading them is one function each: fields that nobody knows are
// ignored; wrong types and ranges throw an ApiError that names the field, its value and what is allowed.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "engine/sampler.h"
#include "text/chat.h"

namespace kivi {

using PromptInput = std::variant<std::string, std::vector<TokenId>>;

// POST /v1/completions and /v1/chat/completions.
struct GenerationCall {
  bool is_chat = false;
  std::string model{};                  // empty: whatever is served
  std::vector<PromptInput> prompts{};   // of a completion, at least one
  std::vector<ChatMessage> messages{};  // of a chat
  int64_t n = 1;                        // choices for each prompt
  std::optional<int64_t> max_tokens{};  // none: of a completion 16, of a chat what the context leaves
  int64_t min_tokens = 0;
  SamplingParams sampling{};
  std::optional<int64_t> seed{};
  std::vector<std::string> stops{};  // none is empty
  std::vector<TokenId> stop_token_ids{};
  bool includes_stop = false;  // in the text
  bool ignores_eos = false;
  bool skips_special = true;            // special tokens have no text
  std::optional<int64_t> n_logprobs{};  // none: no log-probabilities
  bool echo = false;
  bool stream = false;
  bool include_usage = false;     // in a chunk of its own at the end
  bool continuous_usage = false;  // in every chunk
};

GenerationCall parse_completion(std::string_view body);
GenerationCall parse_chat(std::string_view body);

// POST /tokenize: a text or a conversation.
struct TokenizeCall {
  std::string model{};
  std::optional<std::string> prompt{};
  std::vector<ChatMessage> messages{};
  bool add_special_tokens = true;
};
TokenizeCall parse_tokenize(std::string_view body);

// POST /detokenize.
struct DetokenizeCall {
  std::string model{};
  std::vector<TokenId> tokens{};
};
DetokenizeCall parse_detokenize(std::string_view body);

}  // namespace kivi
