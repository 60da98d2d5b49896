// GGUF v2 and v3: metadata and tensors of a model file, mapped into memory. Every count, length and offset of the file
// is checked before it is used. Throws Error{kCorrupt} naming the field on a malformed file, Error{kUnsupported} on a
// version or tensor type that kivi does not read.
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

// A metadata value: scalars are widened; arrays hold the three kinds that model files use.
using GgufValue = std::variant<bool, int64_t, uint64_t, double, std::string, std::vector<int64_t>, std::vector<double>,
                               std::vector<std::string>>;

struct GgufTensor {
  std::vector<int64_t> shape;  // GGUF's order: shape[0] is contiguous (columns)
  WeightView view;             // cols = shape[0], rows = product of the others
};

class GgufFile {
 public:
  explicit GgufFile(const std::string& path);
  // Reads from memory, for tests and fuzzing. `bytes` must outlive the object.
  explicit GgufFile(std::span<const std::byte> bytes);

  const std::map<std::string, GgufValue, std::less<>>& metadata() const { return metadata_; }
  const std::map<std::string, GgufTensor, std::less<>>& tensors() const { return tensors_; }

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
  const GgufTensor& tensor(std::string_view name) const;
  const GgufTensor* find_tensor(std::string_view name) const;  // nullptr if missing

 private:
  void parse(std::span<const std::byte> bytes);

  std::optional<MappedFile> file_;
  std::map<std::string, GgufValue, std::less<>> metadata_;
  std::map<std::string, GgufTensor, std::less<>> tensors_;
};

}  // namespace kivi
