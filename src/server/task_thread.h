// One thread that runs tasks in order: for what would hold up the loop, such as reading and tokenising a long prompt.
#pragma once

#include <condition_variable>
#include <functional>
#include <mutex>
#include <queue>
#include <thread>

namespace kivi {

class TaskThread {
 public:
  using Task = std::function<void()>;  // must not throw

  explicit TaskThread(const char* name);  // at most 15 characters
  // Runs the task that runs to its end; those that wait are dropped.
  ~TaskThread();

  void post(Task task);  // from any thread

 private:
  void run();

  std::mutex mutex_;
  std::condition_variable news_;
  std::queue<Task> tasks_;
  bool stopping_ = false;
  std::thread thread_;
};

}  // namespace kivi
