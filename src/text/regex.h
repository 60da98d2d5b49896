// Regular expressions over text and over bytes (PCRE2).
#pragma once

#include <string>
#include <string_view>

namespace kivi {

// The pattern that matches `text` itself.
std::string literal_pattern(std::string_view text);

class Regex {
 public:
  // `pattern` is in Oniguruma's syntax, in which tokenizer.json has its patterns: \s is Unicode's White_Space, \h a
  // hexadecimal digit. With `is_bytes`, text is bytes, and so are escapes and classes. Throws Error{kUnsupported} for a
  // pattern that is none, and for what Oniguruma and PCRE2 understand differently and no model is known to use.
  Regex(std::string_view pattern, bool is_bytes);
  ~Regex();
  Regex(Regex&& other) noexcept;
  Regex& operator=(Regex&&) = delete;

 private:
  friend class RegexMatcher;
  void* code_;  // pcre2_code
};

// Searches; holds the scratch memory, so one per thread.
class RegexMatcher {
 public:
  explicit RegexMatcher(const Regex& regex);  // kept
  ~RegexMatcher();
  RegexMatcher(RegexMatcher&&) = delete;

  // Calls on_match(begin, end) for every match that is not empty, in order. `text` is valid UTF-8 unless the pattern is
  // of bytes. Throws Error{kUnsupported} where the pattern takes too many steps.
  template <typename OnMatch>
  void for_each_match(std::string_view text, OnMatch on_match) {
    for (size_t from = 0; from < text.size() && find(text, from); from = end_) on_match(begin_, end_);
  }

 private:
  bool find(std::string_view text, size_t from);

  const void* code_;
  void* match_;    // pcre2_match_data
  void* context_;  // pcre2_match_context
  size_t begin_ = 0, end_ = 0;
};

}  // namespace kivi
