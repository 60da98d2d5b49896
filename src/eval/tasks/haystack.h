// Long texts with a fact hidden in them, as long as a context asks for.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "eval/tasks/task_prompt.h"

namespace kivi {

// Text in pieces that are never cut, sentences or lines; after the last one it begins again.
class Haystack {
 public:
  // Throws Error{kInvalidArgument} if no piece has text.
  Haystack(const Tokenizer& tokenizer, const std::vector<std::string>& pieces);

  // n_pieces from piece `first` on (whatever number that is), with `fact` before the one where `depth` of their tokens
  // is nearest.
  std::string text(int64_t first, int64_t n_pieces, std::string_view fact, double depth) const;

  // Pieces from `first` on that have n_tokens at most, each counted by itself.
  int64_t pieces_within(int64_t first, int64_t n_tokens) const;

 private:
  size_t index(int64_t piece) const { return static_cast<size_t>(piece % std::ssize(pieces_)); }

  std::vector<std::string> pieces_;
  std::vector<int64_t> n_tokens_;  // by piece
};

// What is hidden where, and how is it asked for.
struct HiddenFact {
  std::string fact;
  double depth = 0.0;  // in [0, 1]
  int64_t first_piece = 0;
  std::function<TaskPrompt(const std::string& text)> ask;  // around the text
};

// The prompt with as many pieces as n_tokens of it have room for. Throws Error{kInvalidArgument} if the fact and the
// question alone are longer.
std::vector<TokenId> fit_prompt(const Haystack& haystack, const HiddenFact& hidden, const PromptFormat& format,
                                int64_t n_tokens);

// Sentences, each with the white space behind it: together the text.
std::vector<std::string> split_sentences(std::string_view text);

}  // namespace kivi
