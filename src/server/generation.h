// One HTTP request on its way through the engine: all its choices, from their first event to the end of the answer.
// Loop thread only.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "server/choice_output.h"
#include "server/http_server.h"
#include "server/metrics.h"
#include "server/responses.h"
#include "server/schema.h"

namespace kivi {

class Generation {
 public:
  using Clock = std::chrono::steady_clock;

  // What it needs of the server.
  struct Surroundings {
    const Tokenizer* tokenizer = nullptr;
    Metrics* metrics = nullptr;
    std::function<void(size_t choice_idx)> cancel;  // in the engine
    // Runs `make` where it holds nobody up, then `use` with its result on the loop.
    std::function<void(std::function<std::string()> make, std::function<void(std::string)> use)> print;
  };

  // Choices are those of the first prompt, then those of the second ... The head's headers go with the answer.
  Generation(const GenerationCall& call, AnswerHead head, const std::vector<Request>& prompts,
             std::shared_ptr<HttpExchange> exchange, std::vector<HttpHeader> headers, Surroundings surroundings,
             Clock::time_point arrival);

  size_t n_choices() const { return choices_.size(); }
  // Opens the stream, if it is one.
  void start();
  void add(size_t choice_idx, Event event, Clock::time_point ready);
  // The client has gone: cancels what still runs.
  void abandon();

 private:
  struct Choice {
    ChoiceOutput output;
    OutputDelta whole{};  // of an answer that is no stream
    bool has_role = false;
    bool is_over = false;
    double queue_seconds = 0.0;
    int64_t n_reused = 0;
    Clock::time_point last_token{};
  };

  void count(Choice& choice, const Event& event, Clock::time_point ready);
  void stream(size_t choice_idx, const OutputDelta& delta, Clock::time_point ready);
  void end(Choice& choice, Clock::time_point ready);
  void end_stream(Clock::time_point ready);
  void respond();
  const Error* first_error() const;
  Usage usage() const;
  std::optional<Usage> running_usage() const;

  AnswerPrinter printer_;
  std::shared_ptr<HttpExchange> exchange_;
  std::vector<HttpHeader> headers_;
  Surroundings surroundings_;
  Clock::time_point arrival_;
  int64_t choices_per_prompt_;
  bool streams_, include_usage_, continuous_usage_;
  bool is_abandoned_ = false;
  size_t n_over_ = 0;
  std::vector<Choice> choices_;
};

}  // namespace kivi
