#include "model/tokenizer_spec.h"

#include <utility>

#include "core/error.h"

namespace kivi {
namespace {

using TokenType = TokenizerSpec::TokenType;

std::string key(std::string_view name) {
  return fmt::format("tokenizer.ggml.{}", name);
}

std::vector<TokenType> read_types(const ModelFile& file, size_t n_tokens) {
  const std::vector<int64_t>* numbers = file.find_ints(key("token_type"));
  if (numbers == nullptr) return {};
  if (numbers->size() != n_tokens) {
    fail(ErrorCode::kCorrupt, "{}: {} has {} entries, must have one for each of {} tokens", file.path(),
         key("token_type"), numbers->size(), n_tokens);
  }
  std::vector<TokenType> types;
  types.reserve(n_tokens);
  for (const int64_t number : *numbers) {
    if (number < static_cast<int64_t>(TokenType::kNormal) || number > static_cast<int64_t>(TokenType::kByte)) {
      fail(ErrorCode::kCorrupt, "{}: {} has {}, must be 1 to 6", file.path(), key("token_type"), number);
    }
    types.push_back(static_cast<TokenType>(number));
  }
  return types;
}

std::optional<TokenId> read_id(const ModelFile& file, std::string_view name, size_t n_tokens) {
  const std::optional<int64_t> id = file.find_int(key(name));
  if (!id) return std::nullopt;
  if (*id < 0 || std::cmp_greater_equal(*id, n_tokens)) {
    fail(ErrorCode::kCorrupt, "{}: {} is {}, but the vocabulary has {} tokens", file.path(), key(name), *id, n_tokens);
  }
  return static_cast<TokenId>(*id);
}

}  // namespace

TokenizerSpec read_tokenizer_spec(const ModelFile& file) {
  TokenizerSpec spec;
  spec.model = file.get_string(key("model"));
  spec.pre = file.find_string(key("pre")).value_or("");
  const std::vector<std::string>* tokens = file.find_strings(key("tokens"));
  if (tokens == nullptr || tokens->empty() || !std::in_range<TokenId>(tokens->size())) {
    fail(ErrorCode::kCorrupt, "{}: {} is missing, empty or beyond 2^31 tokens", file.path(), key("tokens"));
  }
  spec.tokens = *tokens;
  spec.types = read_types(file, tokens->size());
  if (const auto* merges = file.find_strings(key("merges"))) spec.merges = *merges;
  spec.bos = read_id(file, "bos_token_id", tokens->size());
  spec.eos = read_id(file, "eos_token_id", tokens->size());
  spec.pad = read_id(file, "padding_token_id", tokens->size());
  // Files that do not say so mean: Llama's own tokenizers begin with BOS, others do not.
  const bool is_llama = spec.model == "llama" || spec.pre == "llama-bpe";
  spec.add_bos = file.find_bool(key("add_bos_token")).value_or(is_llama);
  spec.chat_template = file.find_string("tokenizer.chat_template").value_or("");
  return spec;
}

}  // namespace kivi
