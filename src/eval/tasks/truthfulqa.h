// TruthfulQA as multiple choice: how likely is each answer to a question, when all of it goes through decode?
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "core/progress.h"
#include "eval/tasks/task.h"
#include "model/decoder.h"
#include "text/tokenizer.h"

namespace kivi {

struct Choice {
  std::string text;
  bool is_true = false;
  bool is_single = false;  // among those of which but one is true (MC1)
};

struct ChoiceQuestion {
  std::string question;
  std::vector<Choice> choices{};
};

// Of a JSON array of {"question", "mc1_targets", "mc2_targets"}, both {answer: 1 or 0}; at most n_most, 0: all. Throws
// Error{kCorrupt}, also where MC1 has not just one true answer or MC2 none of a kind.
std::vector<ChoiceQuestion> read_choice_questions(const std::string& path, int64_t n_most);

// A prompt, and what may follow it.
struct ChoiceTokens {
  std::vector<TokenId> prompt{};
  std::vector<std::vector<TokenId>> answers{};  // none is empty
};

// The question after a few others with their answers, in plain text.
ChoiceTokens encode_choices(const Tokenizer& tokenizer, const ChoiceQuestion& question);

// The log-likelihood of each answer, in nats, by question. The prompt but for its last token runs at once; then token
// after token goes through the cache, so that all that predicts an answer reads what is packed.
std::vector<std::vector<double>> answer_likelihoods(Backend& backend, Decoder& decoder, const KvConfig& kv,
                                                    std::span<const ChoiceTokens> questions, int64_t batch,
                                                    const ProgressCallback& progress);

// MC1: the most likely of the single answers is the true one. MC2: the true answers' part of the probability of all.
TaskOutcome judge_choices(const ChoiceQuestion& question, std::span<const double> likelihoods);

}  // namespace kivi
