// Copies between the host's ordinary memory and the device. They go through a ring of pinned slots: the caller's memory
// is free again when a call returns, while the device copies in its own time, in the order of the stream.
#pragma once

#include <cstddef>
#include <vector>

#include "backend/backend.h"
#include "backend/cuda/device/stream.h"

namespace kivi::cuda {

// Memory of the host that the device reaches by itself.
class PinnedMemory {
 public:
  PinnedMemory(const Stream& stream, size_t size_bytes);
  PinnedMemory(const PinnedMemory&) = delete;
  PinnedMemory& operator=(const PinnedMemory&) = delete;
  ~PinnedMemory();  // waits for the copies
  std::byte* data() const { return data_; }

 private:
  std::byte* data_ = nullptr;
};

class PinnedReadback : public Readback {
 public:
  PinnedReadback(const Stream& stream, size_t size_bytes)
      : stream_(&stream), memory_(stream, size_bytes), copied_(stream) {}
  void start(const void* device, size_t size_bytes) override;
  const std::byte* wait() override;

 private:
  const Stream* stream_;
  PinnedMemory memory_;
  Event copied_;
};

class Staging {
 public:
  static constexpr size_t kSlotBytes = size_t{2} << 20;

  explicit Staging(const Stream& stream);  // which must outlive it

  void upload(void* device, const void* host, size_t size_bytes);
  // Waits for all that was asked of the stream before.
  void download(void* host, const void* device, size_t size_bytes);

  // Fills the next slot in place and uploads it: fill(slot) writes size_bytes, at most kSlotBytes of them.
  template <typename Fill>
  void upload_from(void* device, size_t size_bytes, const Fill& fill) {
    Slot& slot = next();
    fill(slot.data);
    send(slot, device, size_bytes);
  }

 private:
  // A step of a model uploads a handful of short tables: with this many slots none waits for another.
  static constexpr size_t kSlots = 16;
  struct Slot {
    std::byte* data;
    Event copied;  // into it or out of it
  };

  Slot& next();  // a slot that no copy uses any more
  void send(Slot& slot, void* device, size_t size_bytes);

  const Stream* stream_;
  PinnedMemory memory_;
  std::vector<Slot> slots_;
  size_t next_ = 0;
};

}  // namespace kivi::cuda
