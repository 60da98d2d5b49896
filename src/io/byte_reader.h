// Reads little-endian fields one after another from memory, never beyond its end.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>

#include "core/error.h"
#include "core/quoted.h"

namespace kivi {

static_assert(std::endian::native == std::endian::little, "fields are copied as they lie in a little-endian file");

// Numbers of which every bit pattern is a value; bool is none.
template <typename T>
concept FileNumber = std::is_arithmetic_v<T> && !std::is_same_v<T, bool>;

class ByteReader {
 public:
  // `source` names the file in messages.
  ByteReader(std::span<const std::byte> bytes, std::string source) : bytes_(bytes), source_(std::move(source)) {}

  // `what` names the field in the Error{kCorrupt} that a read beyond the end throws.
  template <FileNumber T>
  T read(std::string_view what) {
    T value;
    std::memcpy(&value, take(sizeof(T), what).data(), sizeof(T));
    return value;
  }

  // A string with its length, 64 bits, before it. The view is into the memory that is read.
  std::string_view read_string(std::string_view what) {
    const std::span<const std::byte> text = take(read<uint64_t>(what), what);
    return {reinterpret_cast<const char*>(text.data()), text.size()};
  }

  // A 64-bit number of items that take at least item_bytes each of what follows it.
  uint64_t read_count(uint64_t item_bytes, std::string_view what) {
    const auto count = read<uint64_t>(what);
    if (count > remaining() / item_bytes) {
      fail(ErrorCode::kCorrupt, "{} counts {} items, but only {} bytes follow it; fetch the file again", quoted(what),
           count, remaining());
    }
    return count;
  }

  size_t position() const { return position_; }
  size_t remaining() const { return bytes_.size() - position_; }

  // Throws an Error whose message begins with the file.
  template <typename... Args>
  [[noreturn]] void fail(ErrorCode code, fmt::format_string<Args...> format, Args&&... args) const {
    throw Error(code, fmt::format("{}: {}", source_, fmt::format(format, std::forward<Args>(args)...)));
  }

 private:
  std::span<const std::byte> take(uint64_t size, std::string_view what) {
    if (size > remaining()) {
      fail(ErrorCode::kCorrupt, "{} needs {} bytes at byte {}, but the file has {}; it is truncated, fetch it again",
           quoted(what), size, position_, bytes_.size());
    }
    const auto taken = bytes_.subspan(position_, size);
    position_ += size;
    return taken;
  }

  std::span<const std::byte> bytes_;
  std::string source_;
  size_t position_ = 0;
};

}  // namespace kivi
