// For tests of every device against the reference: values are made as f32 in host memory, put into tensors of the
// device in the dtype that it computes with, and read back as f32.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "backend/tensor.h"
#include "backend/test_device.h"
#include "core/error.h"
#include "reference/ops.h"

namespace kivi {

// The code and the message of the error that `body` throws.
template <typename Body>
std::optional<Error> error_of(const Body& body) {
  try {
    body();
  } catch (const Error& error) {
    return error;
  }
  return std::nullopt;
}

template <typename Body>
std::optional<ErrorCode> error_code_of(const Body& body) {
  const std::optional<Error> error = error_of(body);
  return error ? std::optional(error->code()) : std::nullopt;
}

// What the tests run on: every device but the one that they compare with.
inline std::vector<TestDevice> devices_under_test() {
  std::vector<TestDevice> devices = test_devices();
  std::erase_if(devices, [](const TestDevice& device) { return device.name == "reference"; });
  return devices;
}
inline std::vector<TestDevice> cpu_devices() {
  std::vector<TestDevice> devices = devices_under_test();
  std::erase_if(devices, [](const TestDevice& device) { return !device.name.starts_with("cpu:"); });
  return devices;
}

// Paddings of rows: none, one that keeps 16-byte words together, one that does not.
inline constexpr int64_t kPads[] = {0, 8, 3};

class BackendTester : public testing::TestWithParam<TestDevice> {
 protected:
  // A view [rows, cols] or [rows, heads, D] in a tensor of the device whose rows are `pad` elements longer. What lies
  // there, and what no operation has written yet, is poison: NaN, or -1.
  struct OnDevice {
    Tensor memory;  // [rows, row + pad]
    AnyView view;
    std::vector<int64_t> shape;
    int64_t pad;
  };

  void SetUp() override {
    ASSERT_EQ(backend_->info().device, GetParam().name);
    ASSERT_EQ(act_, GetParam().dtype.value_or(DType::kF32));
  }

  bool on_cpu() const { return GetParam().name.starts_with("cpu:"); }

  static int64_t product(const std::vector<int64_t>& shape) {
    int64_t n = 1;
    for (const int64_t extent : shape) n *= extent;
    return n;
  }

  // ---- Host ----

  // Random values that a dtype holds exactly.
  std::vector<float> random_values(int64_t n, float magnitude = 2.0F, DType dtype = DType::kF32) {
    std::uniform_real_distribution<float> distribution(-magnitude, magnitude);
    std::vector<float> values(static_cast<size_t>(n));
    for (float& value : values) value = in_dtype(distribution(random_), dtype);
    return values;
  }

  static float in_dtype(float value, DType dtype) {
    if (dtype == DType::kF16) return to_float(reference::to_half_saturating(value));
    if (dtype == DType::kBF16) return to_float(reference::to_bfloat16_saturating(value));
    return value;
  }

  // A view of host memory, for the reference.
  template <typename T, int Rank>
  static TensorView<T, Rank> on_host(std::vector<T>& values, std::array<int64_t, Rank> shape) {
    return {values.data(), shape};
  }

  // ---- Device ----

  OnDevice poisoned(DType dtype, const std::vector<int64_t>& shape, int64_t pad = 0) {
    const int64_t row = product(shape) / shape[0];
    OnDevice out{Tensor(*backend_, dtype, {shape[0], row + pad}), {}, shape, pad};
    const std::vector<std::byte> poison(out.memory.size_bytes(), std::byte{0xFF});
    backend_->copy_to_device(out.memory.view().data, poison.data(), poison.size());
    out.view = out.memory.view();
    out.view.rank = static_cast<int>(shape.size());
    std::copy(shape.begin(), shape.end(), out.view.shape.begin());
    if (shape.size() == 1) out.view.stride[0] = 1;
    if (shape.size() == 3) out.view.stride = {row + pad, shape[2], 1};
    return out;
  }

  OnDevice upload(const std::vector<float>& values, DType dtype, const std::vector<int64_t>& shape, int64_t pad = 0) {
    OnDevice out = poisoned(dtype, shape, pad);
    write(out, values);
    return out;
  }

  void write(const OnDevice& to, const std::vector<float>& values) {
    std::vector<std::byte> bytes = raw(to);
    for_each(to, [&](size_t i, size_t at) {
      const float value = values[i];
      if (to.view.dtype == DType::kF32) put(bytes, at, value);
      if (to.view.dtype == DType::kF16) put(bytes, at, reference::to_half_saturating(value));
      if (to.view.dtype == DType::kBF16) put(bytes, at, reference::to_bfloat16_saturating(value));
    });
    backend_->copy_to_device(to.memory.view().data, bytes.data(), bytes.size());
  }

  OnDevice upload(const std::vector<int32_t>& values) {
    OnDevice out = poisoned(DType::kI32, {static_cast<int64_t>(values.size())});
    backend_->copy_to_device(out.view.data, values.data(), values.size() * sizeof(int32_t));
    return out;
  }

  // The values, row by row; fails if the padding is not what it was.
  std::vector<float> download(const OnDevice& from) {
    const std::vector<std::byte> bytes = raw(from);
    std::vector<float> values(static_cast<size_t>(product(from.shape)));
    std::vector<bool> in_view(bytes.size() / size_bytes(from.view.dtype));
    for_each(from, [&](size_t i, size_t at) {
      in_view[at] = true;
      if (from.view.dtype == DType::kF32) values[i] = get<float>(bytes, at);
      if (from.view.dtype == DType::kF16) values[i] = to_float(get<Half>(bytes, at));
      if (from.view.dtype == DType::kBF16) values[i] = to_float(get<BFloat16>(bytes, at));
    });
    for (size_t i = 0; i < bytes.size(); ++i) {
      if (in_view[i / size_bytes(from.view.dtype)] || bytes[i] == std::byte{0xFF}) continue;
      ADD_FAILURE() << "byte " << i << ", outside the rows, was written";
      break;
    }
    return values;
  }

  std::vector<int32_t> download_ints(const OnDevice& from) {
    std::vector<int32_t> values(static_cast<size_t>(product(from.shape)));
    backend_->copy_to_host(values.data(), from.view.data, values.size() * sizeof(int32_t));
    return values;
  }

  std::vector<std::byte> raw(const OnDevice& from) {
    std::vector<std::byte> bytes(from.memory.size_bytes());
    backend_->copy_to_host(bytes.data(), from.memory.view().data, bytes.size());
    return bytes;
  }

  std::unique_ptr<Backend> backend_ = GetParam().make();
  std::unique_ptr<Backend> reference_ = make_backend({"reference", {}});
  const DType act_ = backend_->activation_dtype();
  std::mt19937 random_{20240613};

 private:
  // Calls body(i, at) for every element: i counts those of the view, `at` those of its memory.
  template <typename Body>
  static void for_each(const OnDevice& tensor, const Body& body) {
    const auto row = static_cast<size_t>(product(tensor.shape) / tensor.shape[0]);
    for (size_t i = 0; i < row * static_cast<size_t>(tensor.shape[0]); ++i) {
      body(i, i + i / row * static_cast<size_t>(tensor.pad));
    }
  }

  template <typename T>
  static void put(std::vector<std::byte>& bytes, size_t at, T value) {
    std::memcpy(bytes.data() + at * sizeof(T), &value, sizeof(T));
  }
  template <typename T>
  static T get(const std::vector<std::byte>& bytes, size_t at) {
    T value;
    std::memcpy(&value, bytes.data() + at * sizeof(T), sizeof(T));
    return value;
  }
};

}  // namespace kivi
