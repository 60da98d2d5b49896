// CRC-32 (IEEE 802.3, reflected, as zlib's): how golden data and the format's document name many bytes in few.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace kivi::golden {

inline uint32_t crc32(std::span<const std::byte> bytes) {
  uint32_t crc = ~0U;
  for (const std::byte byte : bytes) {
    crc ^= std::to_integer<uint32_t>(byte);
    for (int i = 0; i < 8; ++i) crc = (crc >> 1) ^ ((crc & 1U) != 0 ? 0xEDB88320U : 0U);
  }
  return ~crc;
}

}  // namespace kivi::golden
