#include "eval/tasks/generation.h"

#include <algorithm>

#include "text/detokenizer.h"

namespace kivi {
namespace {

struct Answer {
  StreamDetokenizer detokenizer;
  std::string text{};
  int64_t n_tokens = 0;
  bool is_cut = false;  // at a stop
};

class Generation {
 public:
  Generation(Backend& backend, Decoder& decoder, const Tokenizer& tokenizer,
             std::span<const std::vector<TokenId>> prompts, const GenerationOptions& options)
      : options_(&options), engine_(backend, decoder, engine_options(backend, prompts, options)) {
    for (const std::vector<TokenId>& prompt : prompts) {
      answers_.push_back({.detokenizer = StreamDetokenizer(tokenizer)});
      engine_.submit({.prompt = prompt,
                      .max_new_tokens = options.max_new_tokens,
                      .stop_ids = tokenizer.end_ids()});  // ids are numbers of prompts
      work_ += work_of(std::ssize(prompt), options.max_new_tokens);
    }
  }

  std::vector<std::string> run() {
    while (!engine_.idle()) {
      for (const Event& event : engine_.step()) take(event);
      const double done = work_of(engine_.stats().prefill_tokens, n_done_);
      if (options_->progress) options_->progress(std::min(done / work_, 1.0));
    }
    std::vector<std::string> texts;
    for (Answer& answer : answers_) texts.push_back(std::move(answer.text));
    return texts;
  }

 private:
  static EngineOptions engine_options(Backend& backend, std::span<const std::vector<TokenId>> prompts,
                                      const GenerationOptions& options) {
    int64_t longest = 0;
    for (const std::vector<TokenId>& prompt : prompts) longest = std::max(longest, std::ssize(prompt));
    const int64_t n_sequences = std::clamp<int64_t>(std::ssize(prompts), 1, chosen_batch(backend, options.batch));
    EngineOptions engine = options.engine;
    engine.capacity.max_tokens = longest + options.max_new_tokens;
    engine.capacity.max_sequences = static_cast<int>(n_sequences);
    engine.max_step_tokens = std::max(engine.max_step_tokens, longest);
    engine.horizon = options.max_new_tokens;  // nobody gives up its pages: what it wrote would be read again, exactly
    return engine;
  }

  // A token that is decoded takes the time of several of a prompt.
  static double work_of(int64_t n_prompt, int64_t n_answer) {
    constexpr double kDecoded = 4.0;
    return static_cast<double>(n_prompt) + kDecoded * static_cast<double>(n_answer);
  }

  void take(const Event& event) {
    Answer& answer = answers_[static_cast<size_t>(event.id)];
    if (event.token) add(event.id, answer, *event.token);
    if (!event.finish) return;
    if (event.finish->error) throw Error(*event.finish->error);
    if (!answer.is_cut) answer.text += answer.detokenizer.finish();
    n_done_ += options_->max_new_tokens - answer.n_tokens;
  }

  void add(RequestId id, Answer& answer, TokenId token) {
    answer.text += answer.detokenizer.add(token);
    ++answer.n_tokens;
    ++n_done_;
    for (const std::string& stop : options_->stops) {
      const size_t at = answer.text.find(stop);
      if (at == std::string::npos) continue;
      answer.text.resize(at);
      answer.is_cut = true;
      engine_.cancel(id);
    }
  }

  const GenerationOptions* options_;
  Engine engine_;
  std::vector<Answer> answers_;
  double work_ = 0.0;
  int64_t n_done_ = 0;  // tokens of answers, with those that will not come
};

}  // namespace

int64_t chosen_batch(Backend& backend, int64_t batch) {
  constexpr int64_t kOnHost = 8;
  constexpr int64_t kOnDevice = 256;
  if (batch != 0) return batch;
  return backend.free_bytes() == 0 ? kOnHost : kOnDevice;
}

std::vector<std::string> generate_answers(Backend& backend, Decoder& decoder, const Tokenizer& tokenizer,
                                          std::span<const std::vector<TokenId>> prompts,
                                          const GenerationOptions& options) {
  decoder.release();  // the memory of another cache's larger steps
  return Generation(backend, decoder, tokenizer, prompts, options).run();
}

}  // namespace kivi
