#include "model/tokenizer_spec.h"

#include <utility>

#include "core/error.h"
#include "core/quoted.h"
#include "text/byte_pair.h"
#include "text/presets.h"

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

// GPT-2's byte-level BPE with a named pre-tokeniser.
void read_byte_level(const ModelFile& file, TokenizerSpec& spec) {
  set_pretokeniser(spec, file.find_string(key("pre")).value_or(""));
  const std::vector<std::string>* merges = file.find_strings(key("merges"));
  if (merges == nullptr) return;
  spec.merges.reserve(merges->size());
  for (const std::string& line : *merges) {
    std::optional<TokenizerSpec::Merge> merge = parse_merge(line);
    if (!merge) {
      fail(ErrorCode::kCorrupt, "{}: {} has {}, must be two tokens with a space between", file.path(), key("merges"),
           kivi::quoted(line));
    }
    spec.merges.push_back(std::move(*merge));
  }
}

// SentencePiece's BPE.
void read_sentencepiece(const ModelFile& file, TokenizerSpec& spec) {
  const std::vector<double>* scores = file.find_floats(key("scores"));
  if (scores == nullptr || scores->size() != spec.tokens.size()) {
    fail(ErrorCode::kCorrupt, "{}: {} must have one entry for each of {} tokens", file.path(), key("scores"),
         spec.tokens.size());
  }
  spec.scores.assign(scores->begin(), scores->end());
  set_sentencepiece(spec, file.find_bool(key("add_space_prefix")).value_or(true));
  set_phi3_tokens(spec);
}

}  // namespace

TokenizerSpec read_tokenizer_spec(const ModelFile& file) {
  TokenizerSpec spec;
  const std::vector<std::string>* tokens = file.find_strings(key("tokens"));
  if (tokens == nullptr || tokens->empty() || !std::in_range<TokenId>(tokens->size())) {
    fail(ErrorCode::kCorrupt, "{}: {} is missing, empty or beyond 2^31 tokens", file.path(), key("tokens"));
  }
  spec.tokens = *tokens;
  spec.types = read_types(file, tokens->size());
  const std::string model = file.get_string(key("model"));
  if (model == "gpt2") {
    read_byte_level(file, spec);
  } else if (model == "llama") {
    read_sentencepiece(file, spec);
  } else {
    fail(ErrorCode::kUnsupported, "{}: tokenizer model '{}': must be gpt2 (byte-level BPE) or llama (SentencePiece)",
         file.path(), model);
  }
  spec.bos = read_id(file, "bos_token_id", tokens->size());
  spec.eos = read_id(file, "eos_token_id", tokens->size());
  spec.pad = read_id(file, "padding_token_id", tokens->size());
  if (const std::optional<TokenId> id = read_id(file, "unknown_token_id", tokens->size())) spec.unknown = id;
  for (const char* name : {"eot_token_id", "eom_token_id"}) {
    if (const std::optional<TokenId> id = read_id(file, name, tokens->size())) spec.ends.push_back(*id);
  }
  // Files that do not say so mean: Llama's own tokenizers begin with BOS, others do not.
  const bool is_llama = model == "llama" || file.find_string(key("pre")) == "llama-bpe";
  spec.add_bos = file.find_bool(key("add_bos_token")).value_or(is_llama);
  spec.chat_template = file.find_string("tokenizer.chat_template").value_or("");
  return spec;
}

}  // namespace kivi
