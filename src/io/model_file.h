// A model as its files hold it: metadata and tensors, under GGUF's names whatever the files' kind.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "io/mapped_file.h"
#include "weights/format.h"

namespace kivi {

// A metadata value. Integers of every width become int64_t (uint64_t only beyond its range), floats become double;
// arrays of bool become arrays of int64_t.
using MetadataValue = std::variant<bool, int64_t, uint64_t, double, std::string, std::vector<int64_t>,
                                   std::vector<double>, std::vector<std::string>>;

struct ModelTensor {
  std::vector<int64_t> shape;  // GGUF's order: shape[0] is contiguous (columns)
  WeightView view;             // cols = shape[0], rows = product of the others
};

struct ModelContent {
  std::map<std::string, MetadataValue, std::less<>> metadata;
  std::map<std::string, ModelTensor, std::less<>> tensors;
};

// Views of its tensors point into the mapped files, which it owns.
class ModelFile {
 public:
  // `path` begins every message about the model.
  ModelFile(std::string path, std::vector<MappedFile> files, ModelContent content);

  const std::string& path() const { return path_; }
  const auto& metadata() const { return content_.metadata; }
  const auto& tensors() const { return content_.tensors; }

  // Typed metadata. get_* throw Error{kCorrupt} naming the key if it is missing or of another kind; find_* give nullopt
  // if it is missing and throw if it is of another kind. An integer is accepted where a float is wanted.
  std::string get_string(std::string_view key) const;
  int64_t get_int(std::string_view key) const;
  double get_float(std::string_view key) const;
  std::optional<std::string> find_string(std::string_view key) const;
  std::optional<int64_t> find_int(std::string_view key) const;
  std::optional<double> find_float(std::string_view key) const;
  std::optional<bool> find_bool(std::string_view key) const;
  const std::vector<std::string>* find_strings(std::string_view key) const;  // nullptr if missing
  const std::vector<int64_t>* find_ints(std::string_view key) const;
  const std::vector<double>* find_floats(std::string_view key) const;

  // The tensor of that name; throws Error{kCorrupt} naming it if it is missing.
  const ModelTensor& tensor(std::string_view name) const;
  const ModelTensor* find_tensor(std::string_view name) const;  // nullptr if missing

 private:
  std::string path_;
  std::vector<MappedFile> files_;
  ModelContent content_;
};

}  // namespace kivi
