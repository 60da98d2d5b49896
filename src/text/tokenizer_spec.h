// What a model file says about its tokenizer, as data. Readers of files fill it; make_tokenizer (text/tokenizer.h) runs
// it:
//
//   text -> cut at added tokens -> normaliser -> prefix -> cuts -> pieces -> algorithm -> ids
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace kivi {

using TokenId = int32_t;

inline constexpr std::string_view kMetaspace = "\xE2\x96\x81";  // U+2581, SentencePiece's spelling of a space

// A change of the text between two added tokens.
struct TextChange {
  enum class Kind : uint8_t {
    kNfc,
    kNfkc,
    kReplace,         // every `from` becomes `to`
    kPrepend,         // `to` goes before the text, unless that is empty
    kPrependOnce,     // the same, unless the text begins with `to`
    kCollapseSpaces,  // no spaces at the ends, one where there are several
  };
  Kind kind = Kind::kNfc;
  std::string from = {}, to = {};
  bool first_only = false;  // only where the whole text begins
};

// A cut of each piece of text into smaller ones by a regular expression; what lies between matches is a piece, too.
struct TextCut {
  enum class Matches : uint8_t {  // what becomes of a match
    kIsolated,                    // a piece
    kRemoved,                     // nothing
    kWithPrevious,                // the end of the piece before it
    kWithNext,                    // the beginning of the piece after it
    kContiguous,                  // one piece with the matches beside it
  };
  std::string pattern;  // a Regex (text/regex.h)
  Matches matches = Matches::kIsolated;
  bool is_inverted = false;  // what lies between matches is the match
  bool is_bytes = false;     // the pattern is of bytes, not of characters
};

// A token that is found in the text as it is spelled, and what else of it differs from the usual.
struct AddedToken {
  TokenId id = 0;
  bool takes_space_before = false, takes_space_after = false;  // Unicode's White_Space, as far as it goes
  bool is_normalised = false;                                  // it is found after the normaliser, itself normalised
};

struct TokenizerSpec {
  enum class TokenType : uint8_t { kNormal = 1, kUnknown = 2, kControl = 3, kUserDefined = 4, kUnused = 5, kByte = 6 };

  enum class Algorithm : uint8_t {
    kMerges,   // byte-pair encoding by a list of merges
    kScores,   // SentencePiece BPE: neighbours merge if what they spell is a token, the best score first
    kUnigram,  // SentencePiece unigram: the tokens whose scores add up to most
  };
  enum class Spelling : uint8_t {
    kByteSymbols,  // in GPT-2's byte-level alphabet
    kText,         // as text with U+2581 for a space; tokens of type kByte ("<0x0A>") are one byte
  };
  using Merge = std::pair<std::string, std::string>;

  Algorithm algorithm = Algorithm::kMerges;
  Spelling spelling = Spelling::kByteSymbols;
  std::vector<std::string> tokens;  // by id; only unused ones may be empty
  std::vector<TokenType> types;     // by id; empty: all normal. Control and user-defined tokens are found as spelled
  std::vector<float> scores;        // by id; kScores and kUnigram
  std::vector<Merge> merges;        // best first; kMerges
  std::vector<AddedToken> added;    // of the control and user-defined tokens those that are unusual

  std::vector<TextChange> normaliser;
  std::vector<TextChange> prefix;  // changes after the tokens that are found normalised
  std::vector<TextCut> cuts;
  bool keeps_known_pieces = false;  // a piece that is a token is that token, whatever the merges say
  bool fuses_unknown = true;        // unknown characters side by side are one unknown token

  std::optional<TokenId> bos, eos, pad, unknown;
  std::vector<TokenId> ends;  // others that end a turn or a text
  bool add_bos = false;
  std::string chat_template;  // Jinja source, used to recognise the chat format; may be empty
};

}  // namespace kivi
