#include "server/engine_thread.h"

#include <pthread.h>
#include <unistd.h>

namespace kivi {
namespace {

// Below the other threads, whose work is short: where cores are few, a token on its way to its client need not wait for
// a time slice of the next step.
constexpr int kNicer = 5;

}  // namespace

EngineThread::EngineThread(Engine& engine, Deliver deliver)
    : engine_(&engine), deliver_(std::move(deliver)), thread_([this] { run(); }) {}

EngineThread::~EngineThread() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  news_.notify_one();
  thread_.join();
}

RequestId EngineThread::submit(const Request& request, int64_t n) {
  const std::lock_guard lock(mutex_);
  const RequestId first = next_id_;
  for (int64_t i = 0; i < n; ++i) {
    Request choice = request;
    choice.sampling.seed += static_cast<uint64_t>(i);
    if (i > 0) choice.twin = first;
    inbox_.push_back(Submission{next_id_++, std::move(choice)});
  }
  news_.notify_one();
  return first;
}

void EngineThread::cancel(RequestId id) {
  const std::lock_guard lock(mutex_);
  inbox_.push_back(Cancellation{id});
  news_.notify_one();
}

void EngineThread::run() {
  pthread_setname_np(pthread_self(), "kivi-engine");
  [[maybe_unused]] const int priority = nice(kNicer);  // on Linux of this thread alone, and of those that it starts
  std::vector<Message> messages;
  for (;;) {
    {
      std::unique_lock lock(mutex_);
      news_.wait(lock, [this] { return stopping_ || !inbox_.empty() || !engine_->idle(); });
      if (stopping_) return;
      messages.swap(inbox_);
    }
    for (Message& message : messages) handle(std::move(message));
    messages.clear();
    std::vector<Event> events = engine_->step();
    deliver_({std::move(events), snapshot(), std::chrono::steady_clock::now()});
  }
}

void EngineThread::handle(Message message) {
  if (auto* submission = std::get_if<Submission>(&message)) {
    const RequestId id = engine_->submit(std::move(submission->request));
    if (id != submission->id) fail(ErrorCode::kInternal, "request {}: the engine calls it {}", submission->id, id);
  } else {
    engine_->cancel(std::get<Cancellation>(message).id);
  }
}

EngineSnapshot EngineThread::snapshot() const {
  const KvCache& cache = engine_->cache();
  return {.n_running = engine_->n_running(),
          .n_waiting = engine_->n_waiting(),
          .kv = cache.memory(),
          .allocated_bytes = cache.allocated_bytes(),
          .capacity_bytes = cache.capacity_bytes(),
          .stats = engine_->stats()};
}

}  // namespace kivi
