// Safetensors and the files around them, for tests.
#pragma once

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace kivi {

class SafetensorsBuilder {
 public:
  // Of one tensor, right behind the one before.
  SafetensorsBuilder& add(std::string_view name, std::string_view dtype, const std::vector<int64_t>& shape,
                          size_t n_bytes) {
    add_raw(fmt::format(R"("{}":{{"dtype":"{}","shape":[{}],"data_offsets":[{},{}]}})", name, dtype,
                        fmt::join(shape, ","), data_.size(), data_.size() + n_bytes));
    for (size_t i = 0; i < n_bytes; ++i) data_.push_back(static_cast<char>(data_.size() % 31));
    return *this;
  }
  SafetensorsBuilder& add_floats(std::string_view name, const std::vector<int64_t>& shape,
                                 const std::vector<float>& values) {
    const size_t begin = data_.size();
    add(name, "F32", shape, values.size() * sizeof(float));
    std::memcpy(data_.data() + begin, values.data(), values.size() * sizeof(float));
    return *this;
  }
  // A member of the header as it is written, and bytes of data.
  SafetensorsBuilder& add_raw(std::string_view member, size_t n_bytes = 0) {
    header_ += fmt::format("{}{}", header_.empty() ? "" : ",", member);
    data_.resize(data_.size() + n_bytes);
    return *this;
  }

  std::string build() const { return with_header("{" + header_ + "}", data_); }
  static std::string with_header(const std::string& header, std::string_view data = {}) {
    const uint64_t size = header.size();
    std::string file(sizeof(size), '\0');
    std::memcpy(file.data(), &size, sizeof(size));
    return file.append(header).append(data);
  }

 private:
  std::string header_, data_;
};

// A folder that is there as long as this.
class TemporaryFolder {
 public:
  TemporaryFolder() {
    std::string name = (std::filesystem::temp_directory_path() / "kivi-XXXXXX").string();
    if (mkdtemp(name.data()) == nullptr) std::abort();
    path_ = name;
  }
  ~TemporaryFolder() { std::filesystem::remove_all(path_); }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;

  std::string path(std::string_view name = {}) const { return (name.empty() ? path_ : path_ / name).string(); }
  void write(std::string_view name, std::string_view content) const {
    std::ofstream(path(name), std::ios::binary) << content;
  }

 private:
  std::filesystem::path path_;
};

}  // namespace kivi
