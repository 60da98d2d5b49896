#include "io/model_file.h"

#include <array>
#include <utility>

#include "core/error.h"
#include "core/quoted.h"

namespace kivi {
namespace {

// In the order of MetadataValue's alternatives.
constexpr std::array<std::string_view, std::variant_size_v<MetadataValue>> kKinds = {
    "a bool",   "an integer",           "an integer beyond 2^63 - 1", "a float",
    "a string", "an array of integers", "an array of floats",         "an array of strings"};

template <typename T>
std::string_view kind_of() {
  return kKinds[MetadataValue(T{}).index()];
}

template <typename T>
[[noreturn]] void fail_kind(const ModelFile& file, std::string_view key, const MetadataValue& value) {
  fail(ErrorCode::kCorrupt, "{}: metadata key {} is {}, must be {}", file.path(), quoted(key), kKinds[value.index()],
       kind_of<T>());
}

const MetadataValue* find_value(const ModelFile& file, std::string_view key) {
  const auto found = file.metadata().find(key);
  return found == file.metadata().end() ? nullptr : &found->second;
}

// The value of the key; nullptr if it is missing.
template <typename T>
const T* find(const ModelFile& file, std::string_view key) {
  const MetadataValue* value = find_value(file, key);
  if (value == nullptr) return nullptr;
  if (const T* typed = std::get_if<T>(value)) return typed;
  fail_kind<T>(file, key, *value);
}

template <typename T>
std::optional<T> find_copy(const ModelFile& file, std::string_view key) {
  const T* value = find<T>(file, key);
  return value == nullptr ? std::nullopt : std::optional<T>(*value);
}

template <typename T>
T require(const ModelFile& file, std::string_view key, std::optional<T> value) {
  if (!value) fail(ErrorCode::kCorrupt, "{}: metadata key {} is missing", file.path(), quoted(key));
  return *std::move(value);
}

}  // namespace

std::vector<WeightView> ModelTensor::parts() const {
  if (order.empty()) return {view};
  std::vector<WeightView> parts;
  for (const RowRange& range : order) parts.push_back({view.format, range.n_rows, view.cols, view.row(range.first)});
  return parts;
}

ModelFile::ModelFile(std::string path, std::vector<MappedFile> files, ModelContent content)
    : path_(std::move(path)), files_(std::move(files)), content_(std::move(content)) {}

std::string ModelFile::get_string(std::string_view key) const {
  return require(*this, key, find_string(key));
}
int64_t ModelFile::get_int(std::string_view key) const {
  return require(*this, key, find_int(key));
}
double ModelFile::get_float(std::string_view key) const {
  return require(*this, key, find_float(key));
}

std::optional<std::string> ModelFile::find_string(std::string_view key) const {
  return find_copy<std::string>(*this, key);
}
std::optional<int64_t> ModelFile::find_int(std::string_view key) const {
  return find_copy<int64_t>(*this, key);
}
std::optional<bool> ModelFile::find_bool(std::string_view key) const {
  return find_copy<bool>(*this, key);
}

std::optional<double> ModelFile::find_float(std::string_view key) const {
  const MetadataValue* value = find_value(*this, key);
  if (value == nullptr) return std::nullopt;
  if (const auto* integer = std::get_if<int64_t>(value)) return static_cast<double>(*integer);
  return find_copy<double>(*this, key);
}

const std::vector<std::string>* ModelFile::find_strings(std::string_view key) const {
  return find<std::vector<std::string>>(*this, key);
}
const std::vector<int64_t>* ModelFile::find_ints(std::string_view key) const {
  return find<std::vector<int64_t>>(*this, key);
}
const std::vector<double>* ModelFile::find_floats(std::string_view key) const {
  return find<std::vector<double>>(*this, key);
}

const ModelTensor& ModelFile::tensor(std::string_view name) const {
  if (const ModelTensor* found = find_tensor(name)) return *found;
  fail(ErrorCode::kCorrupt, "{}: tensor {} is missing", path_, quoted(name));
}

const ModelTensor* ModelFile::find_tensor(std::string_view name) const {
  const auto found = tensors().find(name);
  return found == tensors().end() ? nullptr : &found->second;
}

ModelFile ModelFile::with(ModelContent content) && {
  return {std::move(path_), std::move(files_), std::move(content)};
}

}  // namespace kivi
