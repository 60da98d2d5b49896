// The queue of a device that all operations of a backend run in, one after the other.
#pragma once

#include <cuda_runtime_api.h>

#include <utility>

#include "backend/cuda/device/check.h"

namespace kivi::cuda {

class Stream {
 public:
  // `borrowed`: a stream of that device, which must outlive this; null: one of its own.
  explicit Stream(int device, cudaStream_t borrowed = nullptr)
      : device_(device), owned_(borrowed == nullptr), stream_(borrowed) {
    check(cudaSetDevice(device), "choosing the GPU");
    if (owned_) check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "creating a stream");
  }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  ~Stream() {
    if (owned_) cudaStreamDestroy(stream_);
  }

  int device() const { return device_; }
  // The handle, after making its device this thread's current one.
  cudaStream_t enter() const {
    check(cudaSetDevice(device_), "choosing the GPU");
    return stream_;
  }
  void synchronize() const { check(cudaStreamSynchronize(enter()), "waiting for the GPU"); }

 private:
  int device_;
  bool owned_;
  cudaStream_t stream_;
};

// A point in a stream that the host can wait for.
class Event {
 public:
  explicit Event(const Stream& stream) {
    stream.enter();
    check(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming), "creating an event");
  }
  Event(Event&& other) noexcept : event_(std::exchange(other.event_, nullptr)) {}
  Event& operator=(Event&&) = delete;
  ~Event() {
    if (event_ != nullptr) cudaEventDestroy(event_);
  }

  void record(cudaStream_t stream) { check(cudaEventRecord(event_, stream), "recording an event"); }
  void wait() const { check(cudaEventSynchronize(event_), "waiting for the GPU"); }  // at once if never recorded

 private:
  cudaEvent_t event_ = nullptr;
};

}  // namespace kivi::cuda
