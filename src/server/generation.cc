#include "server/generation.h"

#include <algorithm>
#include <utility>

#include "server/api_error.h"

namespace kivi {
namespace {

double seconds(Generation::Clock::duration duration) {
  return std::chrono::duration<double>(duration).count();
}

ApiError to_api_error(const Error& error) {
  const bool is_asked_too_much = error.code() == ErrorCode::kInvalidArgument;
  const bool has_no_room = error.code() == ErrorCode::kOutOfMemory;
  return {.status = is_asked_too_much ? 400 : has_no_room ? 503 : 500, .message = error.what()};
}

}  // namespace

Generation::Generation(const GenerationCall& call, AnswerHead head, const std::vector<Request>& prompts,
                       std::shared_ptr<HttpExchange> exchange, std::vector<HttpHeader> headers,
                       Surroundings surroundings, Clock::time_point arrival)
    : printer_(std::move(head), *surroundings.tokenizer),
      exchange_(std::move(exchange)),
      headers_(std::move(headers)),
      surroundings_(std::move(surroundings)),
      arrival_(arrival),
      choices_per_prompt_(call.n),
      streams_(call.stream),
      include_usage_(call.include_usage),
      continuous_usage_(call.continuous_usage) {
  const ChoiceOutput::Options options = {.stops = call.stops,
                                         .includes_stop = call.includes_stop,
                                         .skips_special = call.skips_special,
                                         .min_tokens = call.min_tokens,
                                         .scores = call.n_logprobs.has_value(),
                                         .echo = call.echo,
                                         .drops_output = call.max_tokens == 0};
  for (const Request& prompt : prompts) {
    for (int64_t i = 0; i < call.n; ++i) {
      choices_.push_back({ChoiceOutput(*surroundings_.tokenizer, prompt.prompt, options)});
    }
  }
}

void Generation::start() {
  if (!streams_) return;
  HttpResponse head{.content_type = "text/event-stream; charset=utf-8", .headers = headers_};
  head.headers.push_back({"Cache-Control", "no-cache"});
  head.headers.push_back({"X-Accel-Buffering", "no"});  // for nginx
  exchange_->start_stream(std::move(head));
}

void Generation::add(size_t choice_idx, Event event, Clock::time_point ready) {
  Choice& choice = choices_[choice_idx];
  if (choice.is_over) return;
  count(choice, event, ready);
  OutputDelta delta = choice.output.add(std::move(event));
  if (is_abandoned_ && !choice.output.finish_reason()) return;
  if (streams_) {
    stream(choice_idx, delta, ready);
  } else {
    choice.whole.append(std::move(delta));
  }
  if (!choice.output.finish_reason()) return;
  if (choice.output.must_cancel()) surroundings_.cancel(choice_idx);
  end(choice, ready);
}

void Generation::count(Choice& choice, const Event& event, Clock::time_point ready) {
  if (event.finish) choice.queue_seconds = event.finish->queue_seconds;
  if (!event.token) return;
  choice.n_reused = event.n_reused;
  if (choice.last_token == Clock::time_point{}) {
    surroundings_.metrics->first_token(choice.output.n_prompt(), seconds(ready - arrival_));
  } else {
    surroundings_.metrics->next_token(seconds(ready - choice.last_token));
  }
  choice.last_token = ready;
}

void Generation::stream(size_t choice_idx, const OutputDelta& delta, Clock::time_point ready) {
  Choice& choice = choices_[choice_idx];
  const auto index = static_cast<int64_t>(choice_idx);
  const std::optional<std::string>& reason = choice.output.finish_reason();
  if (delta.empty() && !reason) return;
  if (const Error* error = first_error()) {
    exchange_->write(sse_event(to_api_error(*error).json()), ready);
    return;
  }
  std::string events;
  if (printer_.head().is_chat && !std::exchange(choice.has_role, true)) {
    events = printer_.role_event(index, running_usage());
  }
  events += printer_.delta_event(index, delta, reason, running_usage());
  exchange_->write(events, ready);
}

void Generation::end(Choice& choice, Clock::time_point ready) {
  choice.is_over = true;
  ++n_over_;
  surroundings_.metrics->finished(*choice.output.finish_reason(), seconds(Clock::now() - arrival_),
                                  choice.queue_seconds);
  if (n_over_ < choices_.size() || is_abandoned_) return;
  exchange_->on_gone = nullptr;
  streams_ ? end_stream(ready) : respond();
}

void Generation::end_stream(Clock::time_point ready) {
  if (include_usage_) exchange_->write(printer_.usage_event(usage()), ready);
  exchange_->write(kDoneEvent, ready);
  exchange_->end_stream();
}

// Scores of a long prompt are megabytes of text: they are printed elsewhere.
void Generation::respond() {
  if (const Error* error = first_error()) {
    HttpResponse response = to_api_error(*error).response();
    response.headers.insert(response.headers.end(), headers_.begin(), headers_.end());
    exchange_->respond(std::move(response));
    return;
  }
  std::vector<FinishedChoice> finished;
  for (Choice& choice : choices_) finished.push_back({std::move(choice.whole), *choice.output.finish_reason()});
  const auto print = [printer = printer_, finished = std::move(finished), usage = usage()] {
    return printer.answer(finished, usage);
  };
  const auto send = [exchange = exchange_, headers = headers_](std::string body) {
    exchange->respond({.body = std::move(body), .headers = headers});
  };
  printer_.head().scores ? surroundings_.print(print, send) : send(print());
}

void Generation::abandon() {
  is_abandoned_ = true;
  for (size_t i = 0; i < choices_.size(); ++i) {
    if (!choices_[i].is_over) surroundings_.cancel(i);
  }
}

const Error* Generation::first_error() const {
  for (const Choice& choice : choices_) {
    if (choice.output.error()) return &*choice.output.error();
  }
  return nullptr;
}

Usage Generation::usage() const {
  Usage usage;
  for (size_t i = 0; i < choices_.size(); ++i) {
    const ChoiceOutput& output = choices_[i].output;
    if (static_cast<int64_t>(i) % choices_per_prompt_ == 0) {
      usage.n_prompt += output.n_prompt();
      usage.n_reused += choices_[i].n_reused;
    }
    usage.n_output += output.n_output();
  }
  return usage;
}

std::optional<Usage> Generation::running_usage() const {
  return continuous_usage_ ? std::optional(usage()) : std::nullopt;
}

}  // namespace kivi
