// The one thread that owns an engine's steps. Requests and cancellations wait in an inbox, which is emptied before each
// step; events go out in one batch a step, stamped, on the engine's thread.
//
//   any thread --submit, cancel--> inbox --> [engine thread: Engine::step()] --one batch a step--> deliver
#pragma once

#include <chrono>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>
#include <utility>
#include <variant>
#include <vector>

#include "engine/engine.h"

namespace kivi {

// The engine after a step.
struct EngineSnapshot {
  int64_t n_running = 0;
  int64_t n_waiting = 0;
  KvMemory kv{};
  int64_t allocated_bytes = 0;  // of the pages of requests; what is kept of prefixes alone can be had back
  int64_t capacity_bytes = 0;
  EngineStats stats{};
};

struct EventBatch {
  std::vector<Event> events{};
  EngineSnapshot engine{};
  std::chrono::steady_clock::time_point ready{};
};

class EngineThread {
 public:
  // Called on the engine's thread after each step; must be quick, and not throw. A batch without events tells of the
  // engine alone.
  using Deliver = std::function<void(EventBatch)>;

  // The engine must outlive it, and nobody else may use the engine's methods that change it.
  EngineThread(Engine& engine, Deliver deliver);
  // Ends the thread after the step that runs; requests that are not done get no further events.
  ~EngineThread();

  // From any thread. Asks for n choices of one prompt, which they share; choice i draws with the request's seed + i.
  // The id of the first one: the others count on from it. What cannot be served ends with a kFailed event.
  RequestId submit(const Request& request, int64_t n);
  // From any thread. The request's last event comes with the next step.
  void cancel(RequestId id);

 private:
  struct Submission {
    RequestId id;
    Request request;
  };
  struct Cancellation {
    RequestId id;
  };
  using Message = std::variant<Submission, Cancellation>;

  void run();
  void handle(Message message);
  EngineSnapshot snapshot() const;

  Engine* engine_;
  Deliver deliver_;
  std::mutex mutex_;
  std::condition_variable news_;
  std::vector<Message> inbox_;  // guarded by mutex_, as what follows
  RequestId next_id_ = 0;       // the engine counts its requests in the same order
  bool stopping_ = false;
  std::thread thread_;
};

}  // namespace kivi
