// SHA-256 (FIPS 180-4): which model and which text a study is of.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

namespace kivi {

class Sha256 {
 public:
  void add(std::span<const std::byte> bytes);
  void add(std::string_view text) { add(std::as_bytes(std::span(text))); }
  // 64 hexadecimal digits. Nothing may be added afterwards.
  std::string hex();

 private:
  static constexpr size_t kBlock = 64;
  void add_block(const std::byte* block);

  std::array<uint32_t, 8> state_ = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                    0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
  std::array<std::byte, kBlock> rest_{};  // the first size_ % kBlock bytes of the next block
  uint64_t size_ = 0;
};

std::string sha256_of_text(std::string_view text);
// Of a file, or of the names and contents of a folder's files. Throws Error{kNotFound}.
std::string sha256_of_file(const std::string& path);

}  // namespace kivi
