// What tests of every device run on: each device with each dtype that it computes with.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <ostream>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "core/dtype.h"

namespace kivi {

struct TestDevice {
  std::string name;
  std::optional<DType> dtype{};  // default: the only one that the device has

  bool is_gpu() const { return name.starts_with("cuda:"); }
  std::unique_ptr<Backend> make() const { return make_backend({.device = name, .n_threads = 2, .dtype = dtype}); }

  friend std::ostream& operator<<(std::ostream& out, const TestDevice& device) {
    return out << device.name << (device.dtype ? " " : "") << (device.dtype ? kivi::name(*device.dtype) : "");
  }
};

inline std::vector<TestDevice> test_devices() {
  std::vector<TestDevice> devices;
  for (const std::string& name : available_devices()) {
    const TestDevice device{name};
    if (!device.is_gpu()) devices.push_back(device);
    if (device.is_gpu()) devices.insert(devices.end(), {{name, DType::kF16}, {name, DType::kBF16}});
  }
  return devices;
}

// "cuda_0_bf16"
inline std::string test_name(const testing::TestParamInfo<TestDevice>& device) {
  std::string name = testing::PrintToString(device.param);
  std::ranges::replace_if(
      name, [](char c) { return c == ':' || c == ' '; }, '_');
  return name;
}

}  // namespace kivi
