// Turns a stream of token ids into text that can be shown at once: bytes are held back until they are whole UTF-8
// characters. All of them together are what Tokenizer::decode gives, with U+FFFD for invalid bytes.
#pragma once

#include <string>

#include "text/tokenizer.h"

namespace kivi {

class StreamDetokenizer {
 public:
  // Control tokens have no text unless show_special.
  explicit StreamDetokenizer(const Tokenizer& tokenizer, bool show_special = false)
      : tokenizer_(&tokenizer), show_special_(show_special) {}

  // The text that this token completes; may be empty. Bytes that can never become a character come out as U+FFFD.
  std::string add(TokenId id);
  // What is still held back, at the end of the stream, as U+FFFD; empty if nothing is.
  std::string finish();

 private:
  const Tokenizer* tokenizer_;
  bool show_special_;
  std::string pending_;
  bool is_first_ = true;  // nothing has been shown
};

}  // namespace kivi
