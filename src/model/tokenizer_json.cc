#include "model/tokenizer_json.h"

#include <algorithm>
#include <array>
#include <utility>

#include "text/byte_alphabet.h"
#include "text/byte_pair.h"

namespace kivi {
namespace {

using TokenType = TokenizerSpec::TokenType;

constexpr std::array<std::string_view, 6> kDecoders = {"ByteLevel",    "Metaspace", "Replace",
                                                       "ByteFallback", "Fuse",      "Strip"};

// Ids may have gaps, which are unused tokens; but a file must not make us allocate what it does not hold.
void check_id(const JsonField& field, TokenId id, size_t n_entries) {
  const size_t limit = 2 * n_entries + 1024;
  if (static_cast<size_t>(id) >= limit) {
    field.fail(ErrorCode::kCorrupt, "has token id {}, beyond {} for {} entries", id, limit - 1, n_entries);
  }
}

void put_token(TokenId id, const std::string& text, TokenType type, TokenizerSpec& spec) {
  const auto i = static_cast<size_t>(id);
  if (i >= spec.tokens.size()) {
    spec.tokens.resize(i + 1);
    spec.types.resize(i + 1, TokenType::kUnused);
  }
  spec.tokens[i] = text;
  spec.types[i] = type;
}

void read_vocabulary(const JsonField& model, TokenizerSpec& spec) {
  const JsonField vocabulary = model["vocab"];
  const bool has_bytes = model["byte_fallback"].boolean_or(false);
  const size_t n_entries = vocabulary.object().size();
  spec.tokens.reserve(n_entries);
  for (const auto& [token, value] : vocabulary.object().items()) {
    if (!value.is_number_unsigned() || !std::in_range<TokenId>(value.get<uint64_t>())) {
      vocabulary.fail(ErrorCode::kCorrupt, "has token {} whose id is no number from 0 to 2147483647",
                      kivi::quoted(token));
    }
    const auto id = value.get<TokenId>();
    check_id(vocabulary, id, n_entries);
    if (static_cast<size_t>(id) < spec.tokens.size() && !spec.tokens[static_cast<size_t>(id)].empty()) {
      vocabulary.fail(ErrorCode::kCorrupt, "has id {} twice", id);
    }
    put_token(id, token, has_bytes && byte_of_token(token) ? TokenType::kByte : TokenType::kNormal, spec);
  }
}

std::optional<TokenizerSpec::Merge> merge_of(const nlohmann::json& merge) {
  if (merge.is_string()) return parse_merge(merge.get_ref<const std::string&>());
  const bool is_pair = merge.is_array() && merge.size() == 2 && merge[0].is_string() && merge[1].is_string();
  return is_pair ? std::optional(merge.get<TokenizerSpec::Merge>()) : std::nullopt;
}

void read_merges(const JsonField& merges, TokenizerSpec& spec) {
  spec.merges.reserve(merges.array().size());
  for (size_t i = 0; i < merges.array().size(); ++i) {
    std::optional<TokenizerSpec::Merge> merge = merge_of(merges.value()[i]);
    if (!merge) merges[i].fail(ErrorCode::kCorrupt, "is neither \"left right\" nor [\"left\", \"right\"]");
    spec.merges.push_back(std::move(*merge));
  }
}

void read_model(const JsonField& model, TokenizerSpec& spec) {
  const std::string& type = model["type"].is_null() ? std::string("BPE") : model["type"].string();
  if (type != "BPE") model.fail(ErrorCode::kUnsupported, "has type {}, must be BPE", kivi::quoted(type));
  for (const char* name : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    const JsonField affix = model[name];
    if (!affix.is_null() && !affix.string().empty()) {
      affix.fail(ErrorCode::kUnsupported, "is {}, must be empty", kivi::quoted(affix.string()));
    }
  }
  read_vocabulary(model, spec);
  read_merges(model["merges"], spec);
  spec.keeps_known_pieces = model["ignore_merges"].boolean_or(false);
  spec.fuses_unknown = model["fuse_unk"].boolean_or(false);
  if (const JsonField unknown = model["unk_token"]; !unknown.is_null()) {
    const auto it = std::find(spec.tokens.begin(), spec.tokens.end(), unknown.string());
    if (it != spec.tokens.end()) spec.unknown = static_cast<TokenId>(it - spec.tokens.begin());
  }
}

void check_decoder(const JsonField& decoder) {
  if (decoder.is_null()) return;
  const std::string& type = decoder["type"].string();
  if (type == "Sequence") {
    const JsonField decoders = decoder["decoders"];
    for (size_t i = 0; i < decoders.array().size(); ++i) check_decoder(decoders[i]);
  } else if (std::find(kDecoders.begin(), kDecoders.end(), type) == kDecoders.end()) {
    decoder.fail(ErrorCode::kUnsupported, "has type {}, must be one of {}", kivi::quoted(type),
                 fmt::join(kDecoders, ", "));
  }
}

// A template that begins with a special token: that is BOS.
void read_template(const JsonField& processor, TokenizerSpec& spec) {
  if (processor.is_null()) return;
  const std::string& type = processor["type"].string();
  if (type == "Sequence") {
    const JsonField processors = processor["processors"];
    for (size_t i = 0; i < processors.array().size(); ++i) read_template(processors[i], spec);
  } else if (type == "TemplateProcessing" && !processor["single"].array().empty()) {
    const JsonField token = processor["single"][size_t{0}]["SpecialToken"]["id"];
    if (token.is_null()) return;
    const auto it = std::find(spec.tokens.begin(), spec.tokens.end(), token.string());
    if (it == spec.tokens.end()) token.fail(ErrorCode::kCorrupt, "is {}, no token", kivi::quoted(token.string()));
    spec.bos = static_cast<TokenId>(it - spec.tokens.begin());
    spec.add_bos = true;
  }
}

}  // namespace

void add_token(const JsonField& token, TokenId id, TokenizerSpec& spec) {
  const std::string& text = token["content"].string();
  if (text.empty()) token["content"].fail(ErrorCode::kCorrupt, "is empty");
  if (token["single_word"].boolean_or(false)) {
    token.fail(ErrorCode::kUnsupported, "is a token of single words only ({}): not supported", kivi::quoted(text));
  }
  check_id(token, id, spec.tokens.size() + 1);
  const auto i = static_cast<size_t>(id);
  if (i < spec.tokens.size() && !spec.tokens[i].empty() && spec.tokens[i] != text) {
    token.fail(ErrorCode::kCorrupt, "is {} with id {}, which is token {}", kivi::quoted(text), id,
               kivi::quoted(spec.tokens[i]));
  }
  put_token(id, text, token["special"].boolean_or(false) ? TokenType::kControl : TokenType::kUserDefined, spec);
  spec.added.push_back({id, token["lstrip"].boolean_or(false), token["rstrip"].boolean_or(false),
                        token["normalized"].boolean_or(false)});
}

TokenizerSpec parse_tokenizer_json(const JsonField& file) {
  TokenizerSpec spec;
  file.object();
  read_model(file["model"], spec);
  if (const JsonField tokens = file["added_tokens"]; !tokens.is_null()) {
    for (size_t i = 0; i < tokens.array().size(); ++i) add_token(tokens[i], tokens[i]["id"].id(), spec);
  }
  if (spec.tokens.empty()) file.fail(ErrorCode::kCorrupt, "has no tokens");
  read_normaliser(file["normalizer"], spec);
  read_pretokeniser(file["pre_tokenizer"], spec);
  check_decoder(file["decoder"]);
  read_template(file["post_processor"], spec);
  return spec;
}

}  // namespace kivi
