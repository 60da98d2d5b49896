// Changes of the text before it is cut into pieces.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "text/tokenizer_spec.h"

namespace kivi {

class Normaliser {
 public:
  explicit Normaliser(std::vector<TextChange> changes) : changes_(std::move(changes)) {}

  // The changed text, in `storage`, or `text` itself where nothing is to do. Bytes that are not valid UTF-8 stay.
  // `is_first`: the whole text begins here. O(n log n).
  std::string_view apply(std::string_view text, bool is_first, std::string& storage) const;

 private:
  std::vector<TextChange> changes_;
};

}  // namespace kivi
