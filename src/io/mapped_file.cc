#include "io/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <system_error>
#include <utility>

#include "core/error.h"

namespace kivi {
namespace {

class FileDescriptor {
 public:
  explicit FileDescriptor(int fd) : fd_(fd) {}
  ~FileDescriptor() {
    if (fd_ >= 0) ::close(fd_);
  }
  FileDescriptor(const FileDescriptor&) = delete;
  FileDescriptor& operator=(const FileDescriptor&) = delete;
  int get() const { return fd_; }

 private:
  int fd_;
};

std::string last_error() {
  return std::generic_category().message(errno);
}

}  // namespace

MappedFile::MappedFile(const std::string& path) : path_(path) {
  // O_NONBLOCK: opening a named pipe must fail below, not wait for a writer.
  const FileDescriptor file(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (file.get() < 0) fail(ErrorCode::kNotFound, "{}: cannot be opened: {}", path, last_error());
  struct stat status {};
  if (::fstat(file.get(), &status) != 0) fail(ErrorCode::kNotFound, "{}: cannot be read: {}", path, last_error());
  if (!S_ISREG(status.st_mode)) fail(ErrorCode::kCorrupt, "{}: is not a regular file; give the path of a file", path);
  if (status.st_size == 0) fail(ErrorCode::kCorrupt, "{}: is empty; fetch it again", path);
  const auto size = static_cast<size_t>(status.st_size);
  void* address = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, file.get(), 0);
  if (address == MAP_FAILED) {
    fail(ErrorCode::kOutOfMemory, "{}: its {} bytes cannot be mapped into memory: {}", path, size, last_error());
  }
  data_ = static_cast<const std::byte*>(address);
  size_ = size;
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) ::munmap(const_cast<std::byte*>(data_), size_);
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : path_(std::move(other.path_)), data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

void read_ahead(std::span<const std::byte> bytes) {
  const auto page = static_cast<uintptr_t>(::sysconf(_SC_PAGESIZE));
  const auto first = reinterpret_cast<uintptr_t>(bytes.data()) / page * page;
  const size_t size = reinterpret_cast<uintptr_t>(bytes.data() + bytes.size()) - first;
  auto* address = reinterpret_cast<void*>(first);
  if (::madvise(address, size, MADV_POPULATE_READ) != 0) ::madvise(address, size, MADV_WILLNEED);  // before Linux 5.14
}

}  // namespace kivi
