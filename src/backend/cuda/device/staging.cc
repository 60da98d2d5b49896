#include "backend/cuda/device/staging.h"

#include <algorithm>
#include <cstring>

namespace kivi::cuda {

PinnedMemory::PinnedMemory(const Stream& stream, size_t size_bytes) {
  stream.enter();
  void* memory = nullptr;
  check(cudaHostAlloc(&memory, size_bytes, cudaHostAllocDefault), "allocating pinned memory");
  data_ = static_cast<std::byte*>(memory);
}

PinnedMemory::~PinnedMemory() {
  cudaFreeHost(data_);
}

void PinnedReadback::start(const void* device, size_t size_bytes) {
  const cudaStream_t queue = stream_->enter();
  check(cudaMemcpyAsync(memory_.data(), device, size_bytes, cudaMemcpyDeviceToHost, queue), "copying to the host");
  copied_.record(queue);
}

const std::byte* PinnedReadback::wait() {
  copied_.wait();
  return memory_.data();
}

Staging::Staging(const Stream& stream) : stream_(&stream), memory_(stream, kSlots * kSlotBytes) {
  for (size_t i = 0; i < kSlots; ++i) slots_.push_back({memory_.data() + i * kSlotBytes, Event(stream)});
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
