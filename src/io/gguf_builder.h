// Builds GGUF files, whole or broken, for tests. Nothing is checked: what is set is written.
#pragma once

#include <array>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <fstream>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "weights/format.h"

namespace kivi {

class GgufBuilder {
 public:
  struct Tensor {
    std::string name;
    std::vector<uint64_t> shape;  // GGUF's order: shape[0] is contiguous
    uint32_t type = 0;            // GGUF's number: type_number() of a format, or any other
    std::vector<std::byte> data;
    std::optional<uint64_t> offset = std::nullopt;  // instead of the right one
  };

  static constexpr uint32_t type_number(WeightFormat format) {
    constexpr std::array<uint32_t, kWeightFormats.size()> kNumbers = {0, 1, 30, 8, 2, 3, 6, 12, 13, 14};
    return kNumbers[static_cast<size_t>(format)];
  }

  explicit GgufBuilder(uint32_t version = 3) : version_(version) {}

  // Metadata; the C++ type of the value is its type in the file.
  template <typename T>
  requires std::is_arithmetic_v<T> GgufBuilder& set(std::string_view key, T value) {
    begin_entry(key, value_type<T>());
    append(metadata_, value);
    return *this;
  }
  GgufBuilder& set(std::string_view key, std::string_view value) {
    begin_entry(key, kString);
    append(metadata_, value);
    return *this;
  }
  template <typename T>
  GgufBuilder& set(std::string_view key, const std::vector<T>& values) {
    begin_entry(key, kArray);
    append(metadata_, value_type<T>());
    append(metadata_, uint64_t{values.size()});
    for (const auto& value : values) append(metadata_, static_cast<T>(value));
    return *this;
  }
  // A value of any type number, spelled in bytes.
  GgufBuilder& set_raw(std::string_view key, uint32_t type, std::span<const std::byte> value) {
    begin_entry(key, type);
    metadata_.insert(metadata_.end(), value.begin(), value.end());
    return *this;
  }

  // Where tensor data is aligned to; set general.alignment too if it is not 32.
  GgufBuilder& align(size_t alignment) {
    alignment_ = alignment;
    return *this;
  }

  GgufBuilder& add(Tensor tensor) {
    tensors_.push_back(std::move(tensor));
    return *this;
  }
  GgufBuilder& add(std::string_view name, std::vector<uint64_t> shape, WeightFormat format,
                   std::span<const std::byte> data) {
    return add({std::string(name), std::move(shape), type_number(format), {data.begin(), data.end()}});
  }
  GgufBuilder& add(std::string_view name, std::vector<uint64_t> shape, std::span<const float> values) {
    return add(name, std::move(shape), WeightFormat::kF32, std::as_bytes(values));
  }

  // The file. There is no padding after the last tensor.
  std::vector<std::byte> build() const {
    std::vector<std::byte> file;
    for (const char c : std::string_view("GGUF")) append(file, c);
    append(file, version_);
    append(file, uint64_t{tensors_.size()});
    append(file, n_entries_);
    file.insert(file.end(), metadata_.begin(), metadata_.end());
    uint64_t offset = 0;
    for (const Tensor& tensor : tensors_) {
      append(file, tensor.name);
      append(file, static_cast<uint32_t>(tensor.shape.size()));
      for (const uint64_t extent : tensor.shape) append(file, extent);
      append(file, tensor.type);
      append(file, tensor.offset.value_or(offset));
      offset = aligned(offset + tensor.data.size());
    }
    for (const Tensor& tensor : tensors_) {
      file.resize(aligned(file.size()));
      file.insert(file.end(), tensor.data.begin(), tensor.data.end());
    }
    return file;
  }

  void write(const std::string& path) const {
    const std::vector<std::byte> file = build();
    std::ofstream(path, std::ios::binary)
        .write(reinterpret_cast<const char*>(file.data()), static_cast<std::streamsize>(file.size()));
  }

 private:
  static constexpr uint32_t kString = 8;
  static constexpr uint32_t kArray = 9;

  template <typename T>
  static constexpr uint32_t value_type() {
    if constexpr (std::same_as<T, std::string>) return kString;
    if constexpr (std::same_as<T, bool>) return 7;
    if constexpr (std::same_as<T, float>) return 6;
    if constexpr (std::same_as<T, double>) return 12;
    if constexpr (std::integral<T>) {
      constexpr uint32_t kUnsigned = sizeof(T) == 1 ? 0 : sizeof(T) == 2 ? 2 : sizeof(T) == 4 ? 4 : 10;
      return kUnsigned + (std::is_signed_v<T> ? 1 : 0);
    }
  }

  template <typename T>
  requires std::is_arithmetic_v<T>
  static void append(std::vector<std::byte>& out, T value) {
    const auto bytes = std::as_bytes(std::span(&value, 1));
    out.insert(out.end(), bytes.begin(), bytes.end());
  }
  static void append(std::vector<std::byte>& out, std::string_view text) {
    append(out, uint64_t{text.size()});
    for (const char c : text) append(out, c);
  }

  void begin_entry(std::string_view key, uint32_t type) {
    ++n_entries_;
    append(metadata_, key);
    append(metadata_, type);
  }

  size_t aligned(size_t size) const { return (size + alignment_ - 1) / alignment_ * alignment_; }

  uint32_t version_;
  size_t alignment_ = 32;
  uint64_t n_entries_ = 0;
  std::vector<std::byte> metadata_;
  std::vector<Tensor> tensors_;
};

}  // namespace kivi
