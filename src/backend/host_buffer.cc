#include "backend/host_buffer.h"

#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "core/error.h"

namespace kivi {
namespace {

class HostBuffer : public Buffer {
 public:
  HostBuffer(void* data, size_t size) : Buffer(static_cast<std::byte*>(data), size) {}
  HostBuffer(const HostBuffer&) = delete;
  HostBuffer& operator=(const HostBuffer&) = delete;
  ~HostBuffer() override { munmap(data_, mapped_size(size_)); }

  static size_t mapped_size(size_t size) { return std::max<size_t>(1, size); }  // a mapping of nothing is an error
};

}  // namespace

std::unique_ptr<Buffer> allocate_host_buffer(size_t size_bytes) {
  void* data =
      mmap(nullptr, HostBuffer::mapped_size(size_bytes), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (data == MAP_FAILED) {
    fail(ErrorCode::kOutOfMemory, "{} bytes of memory: the system gives no more ({}); use a shorter context or batch",
         size_bytes, std::strerror(errno));
  }
  // A cache is read all over at every step: with small pages address translation costs as much as the reading. Where
  // the system has no huge pages this changes nothing.
  constexpr size_t kHugePage = size_t{2} << 20;
  if (size_bytes >= kHugePage) madvise(data, size_bytes, MADV_HUGEPAGE);
  return std::make_unique<HostBuffer>(data, size_bytes);
}

}  // namespace kivi
