#include "server/task_thread.h"

#include <pthread.h>

#include <utility>

namespace kivi {

TaskThread::TaskThread(const char* name)
    : thread_([this, name] {
        pthread_setname_np(pthread_self(), name);
        run();
      }) {}

TaskThread::~TaskThread() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  news_.notify_one();
  thread_.join();
}

void TaskThread::post(Task task) {
  const std::lock_guard lock(mutex_);
  tasks_.push(std::move(task));
  news_.notify_one();
}

void TaskThread::run() {
  for (;;) {
    std::unique_lock lock(mutex_);
    news_.wait(lock, [this] { return stopping_ || !tasks_.empty(); });
    if (stopping_) return;
    const Task task = std::move(tasks_.front());
    tasks_.pop();
    lock.unlock();
    task();
  }
}

}  // namespace kivi
