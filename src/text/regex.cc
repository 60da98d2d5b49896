#include "text/regex.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <algorithm>
#include <new>
#include <utility>

#include "core/error.h"
#include "core/quoted.h"

namespace kivi {
namespace {

// Unicode's White_Space as the inside of a character class. PCRE2's own \s also holds U+180E, which the models' does
// not.
constexpr std::string_view kSpaceClass = R"(\t-\r\x{85}\p{Z})";
constexpr std::string_view kHexClass = "0-9A-Fa-f";

// Steps that a match may take: the models' patterns need a few per character.
constexpr uint32_t kMatchLimit = 1'000'000;

[[noreturn]] void refuse(std::string_view pattern, std::string_view what) {
  fail(ErrorCode::kUnsupported, "pre-tokeniser pattern {}: {}", kivi::quoted(pattern), what);
}

// Rewrites a pattern from left to right.
class Translator {
 public:
  explicit Translator(std::string_view pattern) : pattern_(pattern) {}

  std::string translate() {
    while (at_ < pattern_.size()) {
      const char c = pattern_[at_];
      if (c == '\\') {
        escape();
      } else if (in_class_) {
        inside_class(c);
      } else if (c == '[') {
        in_class_ = true;
        copy(pattern_.substr(at_).starts_with("[^]") ? 3 : pattern_.substr(at_).starts_with("[]") ? 2 : 1);
      } else if (c == '}' && pattern_.substr(at_).starts_with("}+")) {
        refuse(pattern_, "a repeated {n,m}+ is not supported");
      } else {
        copy(1);
      }
    }
    return std::move(out_);
  }

 private:
  void copy(size_t size) {
    out_ += pattern_.substr(at_, size);
    at_ += size;
  }

  void put(std::string_view text) {
    out_ += text;
    at_ += 2;
  }

  void put_class(std::string_view members, bool is_negated) {
    if (in_class_) return is_negated ? refuse(pattern_, "\\S and \\H in a class are not supported") : put(members);
    put(fmt::format("[{}{}]", is_negated ? "^" : "", members));
  }

  void escape() {
    switch (at_ + 1 < pattern_.size() ? pattern_[at_ + 1] : '\0') {
      case 's':
        return put_class(kSpaceClass, false);
      case 'S':
        return put_class(kSpaceClass, true);
      case 'h':
        return put_class(kHexClass, false);
      case 'H':
        return put_class(kHexClass, true);
      case 'u': {
        const std::string_view digits = pattern_.substr(std::min(at_ + 2, pattern_.size()), 4);
        if (digits.size() < 4) refuse(pattern_, "\\u needs four digits");
        out_ += fmt::format("\\x{{{}}}", digits);
        at_ += 6;
        return;
      }
      default: {
        const bool has_braces = pattern_.substr(std::min(at_ + 2, pattern_.size())).starts_with('{');
        const size_t end = has_braces ? pattern_.find('}', at_) : std::string_view::npos;
        copy(end == std::string_view::npos ? 2 : end + 1 - at_);
      }
    }
  }

  void inside_class(char c) {
    const std::string_view rest = pattern_.substr(at_);
    if (rest.starts_with("&&")) refuse(pattern_, "an intersection of classes (&&) is not supported");
    if (rest.starts_with("[:")) {
      const size_t end = rest.find(":]");
      if (end != std::string_view::npos) return copy(end + 2);
    }
    if (c == '[') refuse(pattern_, "a class within a class is not supported");
    if (c == ']') in_class_ = false;
    copy(1);
  }

  std::string_view pattern_;
  size_t at_ = 0;
  bool in_class_ = false;
  std::string out_;
};

pcre2_code* compile(std::string_view oniguruma, bool is_bytes) {
  const std::string pattern = Translator(oniguruma).translate();
  int error = 0;
  size_t error_offset = 0;
  const uint32_t options = is_bytes ? 0 : PCRE2_UTF | PCRE2_UCP;
  pcre2_code* code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(),
                                   options | PCRE2_NEVER_BACKSLASH_C, &error, &error_offset, nullptr);
  if (code == nullptr) refuse(oniguruma, fmt::format("PCRE2 error {} at offset {}", error, error_offset));
  pcre2_jit_compile(code, PCRE2_JIT_COMPLETE);  // without JIT, pcre2_match interprets: slower, the same matches
  return code;
}

}  // namespace

std::string literal_pattern(std::string_view text) {
  std::string pattern;
  for (const char c : text) {
    const bool is_plain = (static_cast<uint8_t>(c) & 0x80) != 0 || (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') ||
                          (c >= 'a' && c <= 'z');
    pattern += is_plain ? std::string(1, c) : fmt::format("\\x{{{:x}}}", static_cast<uint8_t>(c));
  }
  return pattern;
}

Regex::Regex(std::string_view pattern, bool is_bytes) : code_(compile(pattern, is_bytes)) {}

Regex::Regex(Regex&& other) noexcept : code_(std::exchange(other.code_, nullptr)) {}

Regex::~Regex() {
  pcre2_code_free(static_cast<pcre2_code*>(code_));
}

RegexMatcher::RegexMatcher(const Regex& regex)
    : code_(regex.code_),
      match_(pcre2_match_data_create_from_pattern(static_cast<const pcre2_code*>(code_), nullptr)),
      context_(pcre2_match_context_create(nullptr)) {
  if (match_ == nullptr || context_ == nullptr) throw std::bad_alloc();
  pcre2_set_match_limit(static_cast<pcre2_match_context*>(context_), kMatchLimit);
}

RegexMatcher::~RegexMatcher() {
  pcre2_match_context_free(static_cast<pcre2_match_context*>(context_));
  pcre2_match_data_free(static_cast<pcre2_match_data*>(match_));
}

bool RegexMatcher::find(std::string_view text, size_t from) {
  const int result = pcre2_match(static_cast<const pcre2_code*>(code_), reinterpret_cast<PCRE2_SPTR>(text.data()),
                                 text.size(), from, PCRE2_NO_UTF_CHECK | PCRE2_NOTEMPTY,
                                 static_cast<pcre2_match_data*>(match_), static_cast<pcre2_match_context*>(context_));
  if (result == PCRE2_ERROR_NOMATCH) return false;
  if (result < 0) {
    fail(ErrorCode::kUnsupported, "pre-tokeniser: its pattern fails on the text at byte {} (PCRE2 result {})", from,
         result);
  }
  const size_t* range = pcre2_get_ovector_pointer(static_cast<pcre2_match_data*>(match_));
  begin_ = range[0], end_ = range[1];
  if (begin_ < from || begin_ >= end_) {  // \K in a look-around
    fail(ErrorCode::kUnsupported, "pre-tokeniser: its pattern matches backwards at byte {}", from);
  }
  return true;
}

}  // namespace kivi
