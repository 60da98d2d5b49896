#include "text/unicode.h"

#include <utf8proc.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <vector>

namespace kivi {
namespace {

// Bytes of the character that `lead` begins, and the range of its second byte (Unicode standard, table 3-7); 0: not a
// lead.
struct Utf8Lead {
  size_t size;
  uint8_t second_min, second_max;
};

Utf8Lead utf8_lead(uint8_t lead) {
  if (lead < 0x80) return {1, 0x80, 0xBF};
  if (lead < 0xC2) return {0, 0x80, 0xBF};
  if (lead < 0xE0) return {2, 0x80, 0xBF};
  if (lead < 0xF0)
    return {3, lead == 0xE0 ? uint8_t{0xA0} : uint8_t{0x80}, lead == 0xED ? uint8_t{0x9F} : uint8_t{0xBF}};
  if (lead < 0xF5)
    return {4, lead == 0xF0 ? uint8_t{0x90} : uint8_t{0x80}, lead == 0xF4 ? uint8_t{0x8F} : uint8_t{0xBF}};
  return {0, 0x80, 0xBF};
}

bool is_starter(int32_t code_point) {
  return utf8proc_get_property(code_point)->combining_class == 0;
}

// Decomposition, marks not yet in canonical order.
std::vector<int32_t> decompose(std::string_view text, utf8proc_option_t option) {
  constexpr int kMaxDecomposition = 32;  // the longest one is 18
  std::vector<int32_t> code_points;
  code_points.reserve(text.size());
  const auto* bytes = reinterpret_cast<const utf8proc_uint8_t*>(text.data());
  for (size_t i = 0; i < text.size();) {
    int32_t code_point = 0;
    i += static_cast<size_t>(utf8proc_iterate(bytes + i, static_cast<utf8proc_ssize_t>(text.size() - i), &code_point));
    std::array<int32_t, kMaxDecomposition> parts;
    const auto n = utf8proc_decompose_char(code_point, parts.data(), kMaxDecomposition, option, nullptr);
    code_points.insert(code_points.end(), parts.begin(), parts.begin() + n);
  }
  return code_points;
}

// Canonical order: every run of marks sorted by combining class. utf8proc's own sort is quadratic in the run.
void sort_marks(std::vector<int32_t>& code_points) {
  const auto by_class = [](int32_t a, int32_t b) {
    return utf8proc_get_property(a)->combining_class < utf8proc_get_property(b)->combining_class;
  };
  for (auto it = code_points.begin(); it != code_points.end();) {
    const auto run = std::find_if_not(it, code_points.end(), is_starter);
    it = std::find_if(run, code_points.end(), is_starter);
    if (it - run > 1) std::stable_sort(run, it, by_class);
  }
}

bool has_byte_from(uint8_t first, std::string_view text) {
  return std::any_of(text.begin(), text.end(), [&](char c) { return static_cast<uint8_t>(c) >= first; });
}

// Sorted, composed and encoded.
std::string composed(std::vector<int32_t> code_points) {
  sort_marks(code_points);
  const auto n = utf8proc_normalize_utf32(code_points.data(), static_cast<utf8proc_ssize_t>(code_points.size()),
                                          static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE));
  code_points.resize(static_cast<size_t>(n));
  std::string out;
  out.reserve(code_points.size());
  for (const int32_t code_point : code_points) {
    std::array<utf8proc_uint8_t, 4> bytes;
    const auto size = utf8proc_encode_char(code_point, bytes.data());
    out.append(reinterpret_cast<const char*>(bytes.data()), static_cast<size_t>(size));
  }
  return out;
}

// One character of Unicode's White_Space.
bool is_space(std::string_view character) {
  int32_t code_point = 0;
  const auto* bytes = reinterpret_cast<const utf8proc_uint8_t*>(character.data());
  const auto size = utf8proc_iterate(bytes, static_cast<utf8proc_ssize_t>(character.size()), &code_point);
  if (size != static_cast<utf8proc_ssize_t>(character.size())) return false;
  if (code_point < 0x80) return code_point == ' ' || (code_point >= '\t' && code_point <= '\r');
  const auto category = utf8proc_get_property(code_point)->category;
  return code_point == 0x85 || category == UTF8PROC_CATEGORY_ZS || category == UTF8PROC_CATEGORY_ZL ||
         category == UTF8PROC_CATEGORY_ZP;
}

}  // namespace

Utf8Head utf8_head(std::string_view bytes) {
  using Kind = Utf8Head::Kind;
  if (bytes.empty()) return {Kind::kTruncated, 0};
  const Utf8Lead lead = utf8_lead(static_cast<uint8_t>(bytes[0]));
  if (lead.size == 0) return {Kind::kInvalid, 1};
  for (size_t i = 1; i < lead.size; ++i) {
    if (i == bytes.size()) return {Kind::kTruncated, i};
    const auto byte = static_cast<uint8_t>(bytes[i]);
    const uint8_t min = i == 1 ? lead.second_min : uint8_t{0x80};
    const uint8_t max = i == 1 ? lead.second_max : uint8_t{0xBF};
    if (byte < min || byte > max) return {Kind::kInvalid, i};
  }
  return {Kind::kCharacter, lead.size};
}

size_t valid_utf8_prefix(std::string_view bytes) {
  size_t size = 0;
  while (size < bytes.size()) {
    if (static_cast<uint8_t>(bytes[size]) < 0x80) {
      ++size;
      continue;
    }
    const Utf8Head head = utf8_head(bytes.substr(size));
    if (head.kind != Utf8Head::Kind::kCharacter) break;
    size += head.size;
  }
  return size;
}

std::string nfc(std::string_view text) {
  // Nothing below U+0300, whose first byte is 0xCC, is changed by NFC.
  return has_byte_from(0xCC, text) ? composed(decompose(text, UTF8PROC_DECOMPOSE)) : std::string(text);
}

std::string nfkc(std::string_view text) {
  const auto option = static_cast<utf8proc_option_t>(UTF8PROC_DECOMPOSE | UTF8PROC_COMPAT);
  return has_byte_from(0x80, text) ? composed(decompose(text, option)) : std::string(text);
}

size_t leading_space(std::string_view text) {
  size_t size = 0;
  while (size < text.size()) {
    const size_t n = utf8_head(text.substr(size)).size;
    if (!is_space(text.substr(size, n))) break;
    size += n;
  }
  return size;
}

size_t trailing_space(std::string_view text) {
  size_t begin = text.size();
  while (begin > 0) {
    size_t character = begin - 1;
    while (character > 0 && begin - character < 3 && (static_cast<uint8_t>(text[character]) & 0xC0) == 0x80)
      --character;
    if (!is_space(text.substr(character, begin - character))) break;
    begin = character;
  }
  return text.size() - begin;
}

}  // namespace kivi
