// OpenAI's answers as JSON text.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>

#include "server/choice_output.h"
#include "text/tokenizer.h"

namespace kivi {

// What all answers to one request share.
struct AnswerHead {
  bool is_chat = false;
  std::string id{};
  int64_t created = 0;  // seconds since 1970
  std::string model{};
  bool scores = false;  // log-probabilities are wanted
};

struct Usage {
  int64_t n_prompt = 0;
  int64_t n_output = 0;
  int64_t n_reused = 0;  // of the prompts: tokens that were in the cache
};

struct FinishedChoice {
  OutputDelta output{};
  std::string finish_reason{};
};

class AnswerPrinter {
 public:
  // The tokenizer must outlive the printer.
  AnswerPrinter(AnswerHead head, const Tokenizer& tokenizer) : head_(std::move(head)), tokenizer_(&tokenizer) {}

  const AnswerHead& head() const { return head_; }

  // The whole answer.
  std::string answer(std::span<const FinishedChoice> choices, const Usage& usage) const;

  // Events of a stream, "data: ...\n\n".
  std::string role_event(int64_t choice_idx, const std::optional<Usage>& usage) const;  // a chat's first
  std::string delta_event(int64_t choice_idx, const OutputDelta& delta, const std::optional<std::string>& finish_reason,
                          const std::optional<Usage>& usage) const;
  std::string usage_event(const Usage& usage) const;

 private:
  AnswerHead head_;
  const Tokenizer* tokenizer_;
};

std::string sse_event(std::string_view json);
inline constexpr std::string_view kDoneEvent = "data: [DONE]\n\n";

// A token as text: its bytes where they are UTF-8, else "bytes:\xe2\x80", so that different tokens stay different.
std::string token_text(const Tokenizer& tokenizer, TokenId id);

}  // namespace kivi
