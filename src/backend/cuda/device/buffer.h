// Memory of a device.
#pragma once

#include "backend/backend.h"
#include "backend/cuda/device/stream.h"

namespace kivi::cuda {

class DeviceBuffer : public Buffer {
 public:
  // Zeroed in the order of the stream; aligned to 256 bytes. Waits for the device. Throws Error{kOutOfMemory} with what
  // was asked, what is free and which settings to lower.
  DeviceBuffer(size_t size_bytes, const Stream& stream);
  DeviceBuffer(const DeviceBuffer&) = delete;
  DeviceBuffer& operator=(const DeviceBuffer&) = delete;
  ~DeviceBuffer() override;  // waits for the device: no operation loses memory that it works on
};

// Bytes of device memory that nobody has.
size_t free_memory(const Stream& stream);

}  // namespace kivi::cuda
