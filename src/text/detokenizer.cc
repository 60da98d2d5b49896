#include "text/detokenizer.h"

#include <string_view>
#include <utility>

#include "text/unicode.h"

namespace kivi {
namespace {

constexpr std::string_view kReplacementCharacter = "\xEF\xBF\xBD";  // U+FFFD

}  // namespace

std::string StreamDetokenizer::add(TokenId id) {
  pending_ += tokenizer_->token_bytes(id, show_special_);
  std::string text;
  std::string_view rest = pending_;
  if (is_first_ && !rest.empty()) {
    is_first_ = false;
    if (tokenizer_->begins_with_space() && rest.front() == ' ') rest.remove_prefix(1);
  }
  for (;;) {
    const Utf8Head head = utf8_head(rest);
    if (head.kind == Utf8Head::Kind::kTruncated) break;
    text += head.kind == Utf8Head::Kind::kCharacter ? rest.substr(0, head.size) : kReplacementCharacter;
    rest.remove_prefix(head.size);
  }
  pending_ = std::string(rest);
  return text;
}

std::string StreamDetokenizer::finish() {
  return std::exchange(pending_, {}).empty() ? std::string() : std::string(kReplacementCharacter);
}

}  // namespace kivi
