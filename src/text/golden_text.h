// What the tests share of tests/golden/tokenizer: the small vocabulary and the synthetic text, made as generate.py
// makes it.
#pragma once

#include <cstdint>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "text/tokenizer.h"

namespace kivi::golden {

std::string path(std::string_view name);
std::string read_file(std::string_view name);
nlohmann::json read_json(std::string_view name);

// The small vocabulary: ids 0 to 255 are the bytes, then come merged, unmerged, user-defined and control tokens.
TokenizerSpec tiny_spec(std::string_view pre);

uint64_t fnv1a(std::string_view bytes);

class TextMaker {
 public:
  // Takes its words from the vocabulary: the normal tokens that are whole UTF-8 text.
  explicit TextMaker(const TokenizerSpec& spec);

  // About 4 KiB of text; the same for the same vocabulary and index.
  std::string chunk(uint64_t index);

 private:
  size_t below(size_t limit);
  std::string some(size_t most, const std::function<std::string()>& choose);
  std::string code_point();
  std::string piece();

  std::vector<std::string> words_;
  std::vector<std::string> excerpt_;  // by character
  nlohmann::json code_points_;        // [[first, last], ...]
  nlohmann::json lists_;              // [["text", ...], ...]
  uint64_t state_ = 0;
};

}  // namespace kivi::golden
