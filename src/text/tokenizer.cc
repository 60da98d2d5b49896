#include "text/tokenizer.h"

#include <algorithm>
#include <array>
#include <functional>
#include <unordered_map>
#include <utility>

#include "core/error.h"
#include "text/byte_pair.h"
#include "text/normaliser.h"
#include "text/pretokenizer.h"
#include "text/special_tokens.h"
#include "text/unigram.h"
#include "text/vocabulary.h"

namespace kivi {
namespace {

using TokenType = TokenizerSpec::TokenType;
using Algorithm = TokenizerSpec::Algorithm;

// The tokens that end a turn or a document in the vocabularies of the chat formats.
constexpr std::array<std::string_view, 9> kEndTokens = {"<|im_end|>",      "<|eot_id|>",    "<|eom_id|>",
                                                        "<|end_of_text|>", "<|endoftext|>", "<|end|>",
                                                        "<end_of_turn>",   "<eos>",         "</s>"};

// The others that lay out a turn.
constexpr std::array<std::string_view, 8> kTurnTokens = {
    "<|im_start|>", "<|start_header_id|>", "<|end_header_id|>", "<|begin_of_text|>",
    "<|user|>",     "<|assistant|>",       "<|system|>",        "<start_of_turn>"};

// The merger counts symbols in 32 bits, and normalisers make text longer: NFC and U+2581 up to three times.
constexpr size_t kMaxTextBytes = size_t{1} << 29;

// What turns a piece of text into ids, with its scratch memory.
using PieceEncoder = std::function<void(std::string_view piece, std::vector<TokenId>& ids)>;

MergeRules rules_of(const TokenizerSpec& spec, const Vocabulary& vocabulary) {
  return spec.algorithm == Algorithm::kScores ? MergeRules(vocabulary, std::span<const float>(spec.scores))
                                              : MergeRules(vocabulary, spec.merges);
}

// Runs a spec. Immutable, so every thread may use it.
class PipelineTokenizer final : public Tokenizer {
 public:
  explicit PipelineTokenizer(TokenizerSpec spec);

  std::vector<TokenId> encode(std::string_view text, bool add_bos, bool parse_special) const override;
  std::vector<TokenId> encode_after(std::string_view text) const override;
  std::string token_bytes(TokenId id, bool show_special) const override;
  bool begins_with_space() const override { return begins_with_space_; }
  int32_t vocab_size() const override { return vocabulary_.size(); }
  std::optional<TokenId> find(std::string_view token) const override { return vocabulary_.find(token); }
  std::optional<TokenId> bos() const override { return bos_; }
  std::optional<TokenId> eos() const override { return eos_; }
  bool takes_space_after(TokenId id) const override;
  const std::vector<TokenId>& end_ids() const override { return end_ids_; }

 private:
  // Tokens found as spelled: user-defined ones always, control tokens with parse_special.
  struct Found {
    SpecialTokens user, all;
    const SpecialTokens& of(bool parse_special) const { return parse_special ? all : user; }
  };
  using PlainFunction = std::function<void(std::string_view text, bool is_first)>;

  void check_ids(const TokenizerSpec& spec) const;
  void find_added_tokens(const TokenizerSpec& spec);
  void collect_known_pieces();
  void collect_end_ids(const TokenizerSpec& spec);
  PieceEncoder make_encoder() const;
  void append(std::string_view text, bool is_first, bool parse_special, std::vector<TokenId>& ids) const;
  static void cut_at(const SpecialTokens& tokens, std::string_view text, bool is_first, std::vector<TokenId>& ids,
                     const PlainFunction& on_plain);

  Vocabulary vocabulary_;
  std::optional<MergeRules> rules_;
  std::optional<Unigram> unigram_;  // one of the two
  Normaliser normaliser_, prefix_;
  Pretokenizer pretokenizer_;
  Found as_is_, normalised_;  // in the text as it comes, and as the normaliser leaves it
  std::vector<TokenId> space_takers_;
  std::unordered_map<std::string, TokenId> known_pieces_;  // by bytes; empty unless pieces that are tokens are kept
  std::optional<TokenId> bos_, eos_;
  bool add_bos_;
  bool begins_with_space_;
  std::vector<TokenId> end_ids_;
};

bool is_one_of(std::span<const std::string_view> list, std::string_view token) {
  return std::find(list.begin(), list.end(), token) != list.end();
}

// Some model files call the tokens of the chat format user-defined: then text would be able to forge a turn. "</s>" is
// a tag of HTML unless it is EOS (Gemma).
void make_turn_tokens_control(TokenizerSpec& spec) {
  for (size_t id = 0; id < std::min(spec.tokens.size(), spec.types.size()); ++id) {
    const std::string& token = spec.tokens[id];
    const bool is_tag = token == "</s>" && (!spec.eos || std::cmp_not_equal(*spec.eos, id));
    if (spec.types[id] != TokenType::kUserDefined || is_tag) continue;
    if (is_one_of(kEndTokens, token) || is_one_of(kTurnTokens, token)) spec.types[id] = TokenType::kControl;
  }
}

bool prepends_metaspace(const TokenizerSpec& spec) {
  const auto does = [](const TextChange& change) {
    using Kind = TextChange::Kind;
    return (change.kind == Kind::kPrepend || change.kind == Kind::kPrependOnce) && change.to == kMetaspace;
  };
  return std::any_of(spec.normaliser.begin(), spec.normaliser.end(), does) ||
         std::any_of(spec.prefix.begin(), spec.prefix.end(), does);
}

PipelineTokenizer::PipelineTokenizer(TokenizerSpec spec)
    : vocabulary_(spec),
      normaliser_(spec.normaliser),
      prefix_(spec.prefix),
      pretokenizer_(spec.cuts),
      bos_(spec.bos),
      eos_(spec.eos),
      add_bos_(spec.add_bos),
      begins_with_space_(prepends_metaspace(spec)) {
  check_ids(spec);
  if (spec.algorithm == Algorithm::kUnigram) {
    unigram_.emplace(vocabulary_, spec.scores);
  } else {
    rules_.emplace(rules_of(spec, vocabulary_));
  }
  find_added_tokens(spec);
  if (spec.keeps_known_pieces) collect_known_pieces();
  collect_end_ids(spec);
}

void PipelineTokenizer::check_ids(const TokenizerSpec& spec) const {
  const auto check = [&](const char* name, std::optional<TokenId> id) {
    if (id && !vocabulary_.contains(*id)) {
      fail(ErrorCode::kCorrupt, "{} token id {}: must be below the vocabulary's size {}; the model file is broken",
           name, *id, vocabulary_.size());
    }
  };
  check("bos", spec.bos);
  check("eos", spec.eos);
  check("pad", spec.pad);
  for (const TokenId id : spec.ends) check("end", id);
  for (const AddedToken& token : spec.added) check("added", token.id);
}

void PipelineTokenizer::find_added_tokens(const TokenizerSpec& spec) {
  std::unordered_map<TokenId, AddedToken> unusual;
  for (const AddedToken& token : spec.added) {
    unusual.emplace(token.id, token);
    if (token.takes_space_after) space_takers_.push_back(token.id);
  }
  for (TokenId id = 0; id < vocabulary_.size(); ++id) {
    const bool is_user_defined = vocabulary_.type(id) == TokenType::kUserDefined;
    if (!is_user_defined && !vocabulary_.is_control(id)) continue;
    if (is_user_defined && spec.algorithm == Algorithm::kUnigram) continue;  // the model itself prefers them
    const auto it = unusual.find(id);
    const AddedToken options = it == unusual.end() ? AddedToken{id} : it->second;
    std::string text(vocabulary_.token(id)), changed;
    if (options.is_normalised) text = normaliser_.apply(text, true, changed);
    // SentencePiece finds user-defined tokens in the text that it has prepared, spelled like the others.
    const bool is_piece = spec.algorithm == Algorithm::kScores && is_user_defined;
    if (is_piece)
      text = Normaliser({{TextChange::Kind::kReplace, " ", std::string(kMetaspace)}}).apply(text, true, changed);
    Found& found = options.is_normalised || is_piece ? normalised_ : as_is_;
    if (is_user_defined) found.user.add(text, options);
    found.all.add(text, options);
  }
}

void PipelineTokenizer::collect_known_pieces() {
  for (TokenId id = 0; id < vocabulary_.size(); ++id) {
    if (vocabulary_.type(id) == TokenType::kNormal) known_pieces_.emplace(vocabulary_.bytes(id), id);
  }
}

void PipelineTokenizer::collect_end_ids(const TokenizerSpec& spec) {
  const auto add = [&](TokenId id) {
    if (std::find(end_ids_.begin(), end_ids_.end(), id) == end_ids_.end()) end_ids_.push_back(id);
  };
  if (eos_) add(*eos_);
  for (const TokenId id : spec.ends) add(id);
  for (const std::string_view token : kEndTokens) {
    const std::optional<TokenId> id = vocabulary_.find(token);
    // A vocabulary may have learned "</s>" from web pages: that one is text.
    if (id && vocabulary_.is_control(*id)) add(*id);
  }
}

PieceEncoder PipelineTokenizer::make_encoder() const {
  if (unigram_) return [this](std::string_view piece, std::vector<TokenId>& ids) { unigram_->append_best(piece, ids); };
  return [this, merger = BytePairMerger(*rules_), symbols = std::vector<TokenId>()](std::string_view piece,
                                                                                    std::vector<TokenId>& ids) mutable {
    symbols.clear();
    vocabulary_.append_symbols(piece, symbols);
    merger.append_merged(symbols, ids);
  };
}

// Appends the tokens found in `text` and calls on_plain for what lies between them.
void PipelineTokenizer::cut_at(const SpecialTokens& tokens, std::string_view text, bool is_first,
                               std::vector<TokenId>& ids, const PlainFunction& on_plain) {
  if (tokens.empty()) return on_plain(text, is_first);
  for (size_t begin = 0; begin < text.size();) {
    const SpecialTokens::Match found = tokens.find(text, begin);
    if (found.begin > begin) on_plain(text.substr(begin, found.begin - begin), is_first && begin == 0);
    if (found.size > 0) ids.push_back(found.id);
    begin = found.begin + found.size;
  }
}

void PipelineTokenizer::append(std::string_view text, bool is_first, bool parse_special,
                               std::vector<TokenId>& ids) const {
  if (text.size() > kMaxTextBytes) {
    fail(ErrorCode::kInvalidArgument, "text of {} bytes: must be at most {}; split it", text.size(), kMaxTextBytes);
  }
  const PieceEncoder encode_piece = make_encoder();
  std::string changed, prefixed;
  const PlainFunction append_plain = [&](std::string_view plain, bool begins) {
    for (const std::string_view piece : pretokenizer_.split(prefix_.apply(plain, begins, prefixed))) {
      const auto known = known_pieces_.empty() ? known_pieces_.end() : known_pieces_.find(std::string(piece));
      known == known_pieces_.end() ? encode_piece(piece, ids) : ids.push_back(known->second);
    }
  };
  cut_at(as_is_.of(parse_special), text, is_first, ids, [&](std::string_view part, bool begins) {
    const std::string_view normalised = normaliser_.apply(part, begins, changed);
    cut_at(normalised_.of(parse_special), normalised, begins, ids, append_plain);
  });
}

std::vector<TokenId> PipelineTokenizer::encode(std::string_view text, bool add_bos, bool parse_special) const {
  std::vector<TokenId> ids;
  if (add_bos && add_bos_ && bos_) ids.push_back(*bos_);
  append(text, true, parse_special, ids);
  return ids;
}

std::vector<TokenId> PipelineTokenizer::encode_after(std::string_view text) const {
  std::vector<TokenId> ids;
  append(text, false, false, ids);
  return ids;
}

std::string PipelineTokenizer::token_bytes(TokenId id, bool show_special) const {
  if (!vocabulary_.contains(id)) {
    fail(ErrorCode::kInvalidArgument, "token id {}: must be 0 to {}", id, vocabulary_.size() - 1);
  }
  const bool is_hidden = vocabulary_.is_control(id) || vocabulary_.type(id) == TokenType::kUnused;
  return is_hidden && !show_special ? std::string() : vocabulary_.bytes(id);
}

bool PipelineTokenizer::takes_space_after(TokenId id) const {
  return std::find(space_takers_.begin(), space_takers_.end(), id) != space_takers_.end();
}

}  // namespace

std::string Tokenizer::decode(std::span<const TokenId> ids, bool show_special) const {
  std::string text;
  for (const TokenId id : ids) text += token_bytes(id, show_special);
  if (begins_with_space() && text.starts_with(' ')) text.erase(0, 1);
  return text;
}

std::optional<TokenId> Tokenizer::begin_of_text() const {
  const std::vector<TokenId> ids = encode("", true, false);
  return ids.empty() ? std::nullopt : std::optional(ids[0]);
}

std::unique_ptr<Tokenizer> make_tokenizer(TokenizerSpec spec) {
  make_turn_tokens_control(spec);
  return std::make_unique<PipelineTokenizer>(std::move(spec));
}

}  // namespace kivi
