#include "text/special_tokens.h"

#include "text/unicode.h"

namespace kivi {

void SpecialTokens::add(std::string_view text, const AddedToken& options) {
  if (text.empty()) return;
  trie_.add(text, options.id);
  first_bytes_.set(static_cast<uint8_t>(text.front()));
  if (options.takes_space_before || options.takes_space_after) takers_[options.id] = options;
}

SpecialTokens::Match SpecialTokens::find(std::string_view text, size_t from) const {
  for (size_t begin = from; begin < text.size(); ++begin) {
    if (!first_bytes_.test(static_cast<uint8_t>(text[begin]))) continue;
    Match longest{begin, 0, -1};
    trie_.match(text.substr(begin), [&](size_t size, TokenId id) { longest = {begin, size, id}; });
    if (longest.size > 0) return with_space(text, from, longest);
  }
  return {text.size(), 0, -1};
}

SpecialTokens::Match SpecialTokens::with_space(std::string_view text, size_t from, Match match) const {
  const auto taker = takers_.find(match.id);
  if (taker == takers_.end()) return match;
  const size_t before = taker->second.takes_space_before ? trailing_space(text.substr(from, match.begin - from)) : 0;
  const size_t after = taker->second.takes_space_after ? leading_space(text.substr(match.begin + match.size)) : 0;
  return {match.begin - before, before + match.size + after, match.id};
}

}  // namespace kivi
