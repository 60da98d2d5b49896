#include "server/choice_output.h"

#include <algorithm>
#include <iterator>
#include <utility>

namespace kivi {
namespace {

int64_t count_characters(std::string_view text) {
  return std::ranges::count_if(text, [](char c) { return (static_cast<unsigned char>(c) & 0xC0U) != 0x80U; });
}

const char* name_of(FinishReason reason) {
  switch (reason) {
    case FinishReason::kStop:
      return "stop";
    case FinishReason::kLength:
      return "length";
    case FinishReason::kCancelled:
      return "abort";
    case FinishReason::kFailed:
      return "error";
  }
  return "error";
}

}  // namespace

void OutputDelta::append(OutputDelta other) {
  text += other.text;
  tokens.insert(tokens.end(), std::make_move_iterator(other.tokens.begin()),
                std::make_move_iterator(other.tokens.end()));
}

ChoiceOutput::ChoiceOutput(const Tokenizer& tokenizer, std::vector<TokenId> prompt, Options options)
    : tokenizer_(&tokenizer),
      prompt_(std::move(prompt)),
      options_(std::move(options)),
      detokenizer_(tokenizer, !options_.skips_special),
      stops_(options_.stops, options_.includes_stop),
      echoes_(options_.echo) {}

OutputDelta ChoiceOutput::add(Event event) {
  OutputDelta delta;
  if (finish_reason_) return delta;
  std::ranges::move(event.prompt_scores, std::back_inserter(prompt_scores_));
  if (!event.token && !event.finish) return delta;
  if (std::exchange(echoes_, false)) echo_prompt(delta);
  if (event.token) {
    ++n_output_;
    if (!options_.drops_output) add_token(*event.token, std::move(event.score), delta);
    if (stops_.matched()) finish_reason_ = "stop";
  } else {
    finish(std::move(event), delta);
  }
  return delta;
}

// Not looked through for stop strings.
void ChoiceOutput::echo_prompt(OutputDelta& delta) {
  StreamDetokenizer detokenizer(*tokenizer_, !options_.skips_special);
  for (size_t i = 0; i < prompt_.size(); ++i) {
    if (options_.scores) {
      OutputToken& token = delta.tokens.emplace_back(OutputToken{.id = prompt_[i], .text_offset = n_shown_});
      if (i > 0 && i <= prompt_scores_.size()) token.score = std::move(prompt_scores_[i - 1]);
    }
    const std::string text = detokenizer.add(prompt_[i]);
    n_shown_ += count_characters(text);
    delta.text += text;
  }
  const std::string rest = detokenizer.finish();
  n_shown_ += count_characters(rest);
  delta.text += rest;
  n_decoded_ = n_shown_;
  prompt_scores_.clear();
}

void ChoiceOutput::add_token(TokenId id, std::optional<ScoredToken> score, OutputDelta& delta) {
  if (options_.scores) waiting_.push_back({id, n_decoded_, std::move(score)});
  const std::string text = detokenizer_.add(id);
  n_decoded_ += count_characters(text);
  // vLLM's meaning of min_tokens: until then stop strings are text like any other.
  if (n_output_ < options_.min_tokens) {
    show(stops_.finish() + text, delta);
  } else {
    show(stops_.add(text), delta);
  }
}

// Tokens go with the text in which they begin; those that begin behind a stop string never do.
void ChoiceOutput::show(std::string text, OutputDelta& delta) {
  n_shown_ += count_characters(text);
  delta.text += text;
  const bool all_shown = n_shown_ == n_decoded_;
  const auto shown = std::ranges::find_if(
      waiting_, [&](const OutputToken& token) { return !all_shown && token.text_offset >= n_shown_; });
  std::move(waiting_.begin(), shown, std::back_inserter(delta.tokens));
  waiting_.erase(waiting_.begin(), shown);
}

void ChoiceOutput::finish(Event event, OutputDelta& delta) {
  const Finish& end = *event.finish;
  if (end.stop_id) {
    ++n_output_;
    if (options_.includes_stop && !options_.drops_output) {
      add_token(*end.stop_id, std::move(event.score), delta);
    } else if (options_.scores && !options_.drops_output) {
      waiting_.push_back({*end.stop_id, n_decoded_, std::move(event.score)});
    }
  }
  const std::string last = detokenizer_.finish();
  n_decoded_ += count_characters(last);
  std::string text = stops_.add(last);
  if (!stops_.matched()) text += stops_.finish();
  show(std::move(text), delta);
  finish_reason_ = stops_.matched() ? "stop" : name_of(end.reason);
  error_ = end.error;
}

}  // namespace kivi
