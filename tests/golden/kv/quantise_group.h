// One group through the quantiser of format/: what is stored of it, and what a reader sees.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "format/packed_word.h"
#include "format/quantise.h"

namespace kivi::golden {

// Codes in words, in order.
inline std::vector<uint32_t> pack_words(std::span<const uint32_t> codes, int bits) {
  const int per_word = format::codes_per_word(bits);
  std::vector<uint32_t> words((codes.size() + per_word - 1) / per_word);
  for (size_t i = 0; i < codes.size(); ++i) {
    uint32_t& word = words[i / per_word];
    word = format::with_code(word, static_cast<int>(i) % per_word, bits, codes[i]);
  }
  return words;
}

struct QuantisedGroup {
  format::GroupParams params;
  std::vector<uint32_t> codes;
  std::vector<uint32_t> words;
  std::vector<float> values;  // of the codes, read back from the words
};

inline QuantisedGroup quantise_group(std::span<const float> x, int bits) {
  format::GroupRange range;
  for (const float number : x) range.add(number);
  QuantisedGroup group;
  group.params = format::group_params(range, bits);
  const float scale = to_float(group.params.scale);
  const float zero = to_float(group.params.zero);
  for (const float number : x) group.codes.push_back(format::quantise(number, scale, zero, bits));
  group.words = pack_words(group.codes, bits);
  const int per_word = format::codes_per_word(bits);
  for (size_t i = 0; i < x.size(); ++i) {
    const uint32_t code = format::code_at(group.words[i / per_word], static_cast<int>(i) % per_word, bits);
    group.values.push_back(format::dequantise(code, scale, zero));
  }
  return group;
}

}  // namespace kivi::golden
