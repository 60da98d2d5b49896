// A file mapped read-only into memory. Owns the mapping; only moves.
#pragma once

#include <cstddef>
#include <span>
#include <string>

namespace kivi {

class MappedFile {
 public:
  // Throws Error{kNotFound} if the file cannot be opened, Error{kCorrupt} if it is empty or is not a regular file.
  explicit MappedFile(const std::string& path);
  ~MappedFile();
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;

  std::span<const std::byte> bytes() const { return {data_, size_}; }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
  const std::byte* data_ = nullptr;
  size_t size_ = 0;
};

// Has these bytes of a mapped file read now, so that who uses them first does not wait for a disk. Only a hint.
void read_ahead(std::span<const std::byte> bytes);

}  // namespace kivi
