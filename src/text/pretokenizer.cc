#include "text/pretokenizer.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <algorithm>
#include <array>
#include <string>

#include "core/error.h"
#include "text/unicode.h"

namespace kivi {
namespace {

// Unicode's White_Space as the inside of a character class. PCRE2's own \s also holds U+180E, which the models' does
// not.
#define KIVI_SPACE "\\t-\\r\\x{85}\\p{Z}"

struct Rules {
  std::string_view name;
  const char* pattern;  // matches at every position of every text
  bool normalises;      // NFC first
  bool keeps_known_pieces;
};

// Llama 3's pattern; `number` is what one piece of digits is.
#define KIVI_LLAMA3_PATTERN(number)                                                       \
  "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|" number "| ?[^" KIVI_SPACE \
  "\\p{L}\\p{N}]+[\\r\\n]*|[" KIVI_SPACE "]*[\\r\\n]+|[" KIVI_SPACE "]+(?![^" KIVI_SPACE "])|[" KIVI_SPACE "]+"

constexpr std::array kRules = {
    Rules{"gpt-2",
          "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^" KIVI_SPACE "\\p{L}\\p{N}]+|[" KIVI_SPACE
          "]+(?![^" KIVI_SPACE "])|[" KIVI_SPACE "]+",
          false, false},
    // Every digit alone, and GPT-2's pattern on what is between digits, where a digit ends the text for the look-ahead.
    Rules{"smollm",
          "\\p{N}|'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?[^" KIVI_SPACE "\\p{L}\\p{N}]+|[" KIVI_SPACE "]+(?![^" KIVI_SPACE
          "\\p{N}])|[" KIVI_SPACE "]+",
          false, false},
    Rules{"qwen2", KIVI_LLAMA3_PATTERN("\\p{N}"), true, false},
    Rules{"llama-bpe", KIVI_LLAMA3_PATTERN("\\p{N}{1,3}"), false, true},
};

const Rules& rules_of(std::string_view name) {
  const auto it = std::find_if(kRules.begin(), kRules.end(), [&](const Rules& rules) { return rules.name == name; });
  return it == kRules.end() ? kRules.front() : *it;
}

struct FreeMatchData {
  void operator()(pcre2_match_data* data) const { pcre2_match_data_free(data); }
};
using MatchData = std::unique_ptr<pcre2_match_data, FreeMatchData>;

}  // namespace

struct Pretokenizer::Pattern {
  explicit Pattern(const char* source) {
    int error = 0;
    size_t error_offset = 0;
    // Anchored: a match begins where the last one ended.
    code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(source), PCRE2_ZERO_TERMINATED,
                         PCRE2_UTF | PCRE2_UCP | PCRE2_ANCHORED, &error, &error_offset, nullptr);
    if (code == nullptr)
      fail(ErrorCode::kInternal, "pre-tokeniser pattern: PCRE2 error {} at offset {}", error, error_offset);
    pcre2_jit_compile(code, PCRE2_JIT_COMPLETE);  // without JIT, pcre2_match interprets: slower, the same pieces
  }
  ~Pattern() { pcre2_code_free(code); }
  Pattern(const Pattern&) = delete;
  Pattern& operator=(const Pattern&) = delete;

  // `text` is valid UTF-8.
  void split(std::string_view text, pcre2_match_data* match, const PieceFunction& on_piece) const {
    for (size_t begin = 0; begin < text.size();) {
      const int result = pcre2_match(code, reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), begin,
                                     PCRE2_NO_UTF_CHECK, match, nullptr);
      const size_t end = result > 0 ? pcre2_get_ovector_pointer(match)[1] : begin;
      if (end <= begin) fail(ErrorCode::kInternal, "pre-tokeniser: PCRE2 result {} at byte {}", result, begin);
      on_piece(text.substr(begin, end - begin));
      begin = end;
    }
  }

  pcre2_code* code = nullptr;
};

Pretokenizer::Pretokenizer(std::string_view name) {
  const Rules& rules = rules_of(name);
  pattern_ = std::make_unique<Pattern>(rules.pattern);
  normalises_ = rules.normalises;
  keeps_known_pieces_ = rules.keeps_known_pieces;
}

Pretokenizer::~Pretokenizer() = default;

void Pretokenizer::split(std::string_view bytes, const PieceFunction& on_piece) const {
  const MatchData match(pcre2_match_data_create_from_pattern(pattern_->code, nullptr));
  if (match == nullptr) fail(ErrorCode::kOutOfMemory, "pre-tokeniser: no memory for a match");
  while (!bytes.empty()) {
    const std::string_view text = bytes.substr(0, valid_utf8_prefix(bytes));
    if (normalises_) {
      pattern_->split(nfc(text), match.get(), on_piece);
    } else {
      pattern_->split(text, match.get(), on_piece);
    }
    bytes.remove_prefix(text.size());
    if (!bytes.empty()) {
      on_piece(bytes.substr(0, 1));
      bytes.remove_prefix(1);
    }
  }
}

}  // namespace kivi
