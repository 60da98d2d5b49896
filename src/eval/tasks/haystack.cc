#include "eval/tasks/haystack.h"

#include <algorithm>
#include <cmath>

#include "core/error.h"

namespace kivi {

Haystack::Haystack(const Tokenizer& tokenizer, const std::vector<std::string>& pieces) {
  for (const std::string& piece : pieces) {
    const int64_t n_tokens = std::ssize(tokenizer.encode_after(piece));
    if (n_tokens == 0) continue;
    pieces_.push_back(piece);
    n_tokens_.push_back(n_tokens);
  }
  if (pieces_.empty()) fail(ErrorCode::kInvalidArgument, "text to hide a fact in: has no sentence; give a longer one");
}

std::string Haystack::text(int64_t first, int64_t n_pieces, std::string_view fact, double depth) const {
  int64_t n_all = 0;
  for (int64_t i = 0; i < n_pieces; ++i) n_all += n_tokens_[index(first + i)];
  const double wanted = depth * static_cast<double>(n_all);
  std::string text;
  double n_before = 0;
  bool is_hidden = false;
  for (int64_t i = 0; i < n_pieces; ++i) {
    const auto n_here = static_cast<double>(n_tokens_[index(first + i)]);
    if (!is_hidden && wanted - n_before < n_here / 2) {
      text += fact;
      is_hidden = true;
    }
    text += pieces_[index(first + i)];
    n_before += n_here;
  }
  return is_hidden ? text : text.append(fact);
}

int64_t Haystack::pieces_within(int64_t first, int64_t n_tokens) const {
  int64_t n_pieces = 0;
  for (int64_t sum = n_tokens_[index(first)]; sum <= n_tokens; sum += n_tokens_[index(first + n_pieces)]) ++n_pieces;
  return n_pieces;
}

// Tokens may reach over the ends of pieces, so that counting pieces tells the length but nearly.
std::vector<TokenId> fit_prompt(const Haystack& haystack, const HiddenFact& hidden, const PromptFormat& format,
                                int64_t n_tokens) {
  const auto encode = [&](int64_t n_pieces) {
    return format.encode(hidden.ask(haystack.text(hidden.first_piece, n_pieces, hidden.fact, hidden.depth)));
  };
  std::vector<TokenId> fitting = encode(0);
  const int64_t n_bare = std::ssize(fitting);
  if (n_bare > n_tokens) {
    fail(ErrorCode::kInvalidArgument,
         "room for a prompt of {} tokens: the question alone takes {}; use a larger context",
         std::max<int64_t>(n_tokens, 0), n_bare);
  }
  // As near as counting comes; then piece by piece up to the first that is too many.
  int64_t n_pieces = haystack.pieces_within(hidden.first_piece, n_tokens - n_bare);
  std::vector<TokenId> tokens = encode(n_pieces);
  while (std::ssize(tokens) > n_tokens) tokens = encode(--n_pieces);
  for (fitting = std::move(tokens); std::ssize(tokens = encode(n_pieces + 1)) <= n_tokens; ++n_pieces) {
    fitting = std::move(tokens);
  }
  return fitting;
}

std::vector<std::string> split_sentences(std::string_view text) {
  constexpr std::string_view kSpace = " \t\r\n";
  std::vector<std::string> sentences;
  size_t begin = 0;
  for (size_t end = text.find_first_of(".!?"); end != std::string_view::npos; end = text.find_first_of(".!?", end)) {
    ++end;
    if (end == text.size() || kSpace.find(text[end]) == std::string_view::npos) continue;
    const size_t next = std::min(text.find_first_not_of(kSpace, end), text.size());
    sentences.emplace_back(text.substr(begin, next - begin));
    begin = end = next;
  }
  if (begin < text.size()) sentences.emplace_back(text.substr(begin));
  return sentences;
}

}  // namespace kivi
