// UTF-8 and Unicode normalisation, for text that may hold any bytes.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace kivi {

// What stands at the start of a string of bytes.
struct Utf8Head {
  enum class Kind {
    kCharacter,  // a whole character of `size` bytes
    kTruncated,  // all `size` bytes of the string are the beginning of a character (or there are none)
    kInvalid,    // `size` bytes that can never become a character, whatever follows
  };
  Kind kind;
  size_t size;
};

// Surrogates, overlong forms and code points above U+10FFFF are invalid.
Utf8Head utf8_head(std::string_view bytes);

// Bytes of the longest prefix that is valid UTF-8.
size_t valid_utf8_prefix(std::string_view bytes);

// Normalisation forms C and KC of valid UTF-8. O(n log n) whatever the text.
std::string nfc(std::string_view text);
std::string nfkc(std::string_view text);

// Bytes of Unicode's White_Space that the text begins and ends with.
size_t leading_space(std::string_view text);
size_t trailing_space(std::string_view text);

}  // namespace kivi
