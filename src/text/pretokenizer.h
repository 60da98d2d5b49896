// Pre-tokenisation: text cut into the pieces that tokens never cross.
#pragma once

#include <string_view>
#include <vector>

#include "text/regex.h"
#include "text/tokenizer_spec.h"

namespace kivi {

class Pretokenizer {
 public:
  // Throws what Regex throws, and Error{kUnsupported} for a cut of characters after one of bytes.
  explicit Pretokenizer(const std::vector<TextCut>& cuts);

  // The pieces of `bytes`, in order. A byte that is not part of valid UTF-8 is a piece of its own. The pieces joined
  // are `bytes`, less what a cut removes. Thread-safe.
  std::vector<std::string_view> split(std::string_view bytes) const;

 private:
  struct Cut {
    Regex regex;
    TextCut options;
  };

  std::vector<Cut> cuts_;
};

}  // namespace kivi
