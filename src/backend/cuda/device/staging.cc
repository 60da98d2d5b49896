#include "backend/cuda/device/staging.h"

#include <algorithm>
#include <cstring>

namespace kivi::cuda {

Staging::Staging(const Stream& stream) : stream_(&stream) {
  stream.enter();
  void* memory = nullptr;
  check(cudaHostAlloc(&memory, kSlots * kSlotBytes, cudaHostAllocDefault), "allocating pinned memory");
  memory_ = static_cast<std::byte*>(memory);
  for (size_t i = 0; i < kSlots; ++i) slots_.push_back({memory_ + i * kSlotBytes, Event(stream)});
}

Staging::~Staging() {
  cudaFreeHost(memory_);  // waits for the copies
}

Staging::Slot& Staging::next() {
  Slot& slot = slots_[next_];
  next_ = (next_ + 1) % kSlots;
  slot.copied.wait();
  return slot;
}

void Staging::send(Slot& slot, void* device, size_t size_bytes) {
  const cudaStream_t queue = stream_->enter();
  check(cudaMemcpyAsync(device, slot.data, size_bytes, cudaMemcpyHostToDevice, queue), "copying to the device");
  slot.copied.record(queue);
}

void Staging::upload(void* device, const void* host, size_t size_bytes) {
  for (size_t at = 0; at < size_bytes; at += kSlotBytes) {
    const size_t size = std::min(kSlotBytes, size_bytes - at);
    upload_from(static_cast<std::byte*>(device) + at, size,
                [&](std::byte* slot) { std::memcpy(slot, static_cast<const std::byte*>(host) + at, size); });
  }
}

void Staging::download(void* host, const void* device, size_t size_bytes) {
  const cudaStream_t queue = stream_->enter();
  const auto size_at = [&](size_t at) { return std::min(kSlotBytes, size_bytes - at); };
  Slot* arriving = nullptr;
  size_t arriving_at = 0;
  const auto take = [&] {
    if (arriving == nullptr) return;
    arriving->copied.wait();
    std::memcpy(static_cast<std::byte*>(host) + arriving_at, arriving->data, size_at(arriving_at));
  };
  for (size_t at = 0; at < size_bytes; at += kSlotBytes) {
    Slot& slot = next();
    check(cudaMemcpyAsync(slot.data, static_cast<const std::byte*>(device) + at, size_at(at), cudaMemcpyDeviceToHost,
                          queue),
          "copying to the host");
    slot.copied.record(queue);
    take();  // the one before, while this one is on its way
    arriving = &slot;
    arriving_at = at;
  }
  take();
  if (size_bytes == 0) stream_->synchronize();
}

}  // namespace kivi::cuda
