#include "io/gguf.h"

#include <fmt/format.h>

#include <array>
#include <bit>
#include <numeric>
#include <utility>

#include "core/error.h"
#include "io/byte_reader.h"

// The file: magic, version and two counts; the metadata; a description of every tensor; then, aligned, the tensors'
// data.

namespace kivi {
namespace {

constexpr std::string_view kMagic = "GGUF";
constexpr uint32_t kOldestVersion = 2;
constexpr uint32_t kNewestVersion = 3;
constexpr int64_t kDefaultAlignment = 32;
constexpr uint32_t kMostDimensions = 4;
constexpr uint64_t kSmallestString = 8;  // its length

enum class ValueType : uint32_t {
  kUint8 = 0,
  kInt8 = 1,
  kUint16 = 2,
  kInt16 = 3,
  kUint32 = 4,
  kInt32 = 5,
  kFloat32 = 6,
  kBool = 7,
  kString = 8,
  kArray = 9,
  kUint64 = 10,
  kInt64 = 11,
  kFloat64 = 12,
};

// GGUF's tensor types by their number; numbers without a name were given up.
constexpr std::array<std::string_view, 42> kTensorTypes = {
    "F32",   "F16",    "Q4_0",  "Q4_1", "",     "",        "Q5_0",   "Q5_1",    "Q8_0",  "Q8_1",   "Q2_K",
    "Q3_K",  "Q4_K",   "Q5_K",  "Q6_K", "Q8_K", "IQ2_XXS", "IQ2_XS", "IQ3_XXS", "IQ1_S", "IQ4_NL", "IQ3_S",
    "IQ2_S", "IQ4_XS", "I8",    "I16",  "I32",  "I64",     "F64",    "IQ1_M",   "BF16",  "",       "",
    "",      "TQ1_0",  "TQ2_0", "",     "",     "",        "MXFP4",  "NVFP4",   "Q1_0"};

void check_magic_and_version(ByteReader& in) {
  for (const char expected : kMagic) {
    if (in.read<char>("magic") != expected) {
      in.fail(ErrorCode::kCorrupt, "does not begin with 'GGUF'; give a model in GGUF format");
    }
  }
  const auto version = in.read<uint32_t>("version");
  if (version != 0 && version % 65536 == 0) {
    in.fail(ErrorCode::kUnsupported, "is a big-endian GGUF file; kivi reads little-endian ones");
  }
  if (version < kOldestVersion || version > kNewestVersion) {
    in.fail(ErrorCode::kUnsupported, "GGUF version {}: kivi reads versions {} to {}; convert the model again", version,
            kOldestVersion, kNewestVersion);
  }
}

bool read_bool(ByteReader& in, std::string_view key) {
  const auto value = in.read<uint8_t>(key);
  if (value > 1) in.fail(ErrorCode::kCorrupt, "metadata key {}: bool is {}, must be 0 or 1", quoted(key), value);
  return value == 1;
}

template <typename T>
int64_t read_integer(ByteReader& in, std::string_view key) {
  if constexpr (std::is_same_v<T, bool>) {
    return read_bool(in, key);
  } else {
    const T value = in.read<T>(key);
    if (!std::in_range<int64_t>(value)) {
      in.fail(ErrorCode::kUnsupported, "metadata key {}: array element {} is beyond 2^63 - 1", quoted(key), value);
    }
    return static_cast<int64_t>(value);
  }
}

template <typename T>
std::vector<int64_t> read_integers(ByteReader& in, std::string_view key) {
  std::vector<int64_t> values(in.read_count(sizeof(T), key));
  for (int64_t& value : values) value = read_integer<T>(in, key);
  return values;
}

template <typename T>
std::vector<double> read_floats(ByteReader& in, std::string_view key) {
  std::vector<double> values(in.read_count(sizeof(T), key));
  for (double& value : values) value = double{in.read<T>(key)};
  return values;
}

std::vector<std::string> read_strings(ByteReader& in, std::string_view key) {
  std::vector<std::string> values(in.read_count(kSmallestString, key));
  for (std::string& value : values) value = in.read_string(key);
  return values;
}

MetadataValue read_array(ByteReader& in, std::string_view key) {
  const auto type = in.read<uint32_t>(key);
  switch (static_cast<ValueType>(type)) {
    case ValueType::kUint8:
      return read_integers<uint8_t>(in, key);
    case ValueType::kInt8:
      return read_integers<int8_t>(in, key);
    case ValueType::kUint16:
      return read_integers<uint16_t>(in, key);
    case ValueType::kInt16:
      return read_integers<int16_t>(in, key);
    case ValueType::kUint32:
      return read_integers<uint32_t>(in, key);
    case ValueType::kInt32:
      return read_integers<int32_t>(in, key);
    case ValueType::kUint64:
      return read_integers<uint64_t>(in, key);
    case ValueType::kInt64:
      return read_integers<int64_t>(in, key);
    case ValueType::kBool:
      return read_integers<bool>(in, key);
    case ValueType::kFloat32:
      return read_floats<float>(in, key);
    case ValueType::kFloat64:
      return read_floats<double>(in, key);
    case ValueType::kString:
      return read_strings(in, key);
    case ValueType::kArray:
      in.fail(ErrorCode::kUnsupported, "metadata key {} is an array of arrays", quoted(key));
  }
  in.fail(ErrorCode::kCorrupt, "metadata key {}: array of type {}; types are 0 to 12", quoted(key), type);
}

MetadataValue read_value(ByteReader& in, std::string_view key) {
  const auto type = in.read<uint32_t>(key);
  switch (static_cast<ValueType>(type)) {
    case ValueType::kUint8:
      return read_integer<uint8_t>(in, key);
    case ValueType::kInt8:
      return read_integer<int8_t>(in, key);
    case ValueType::kUint16:
      return read_integer<uint16_t>(in, key);
    case ValueType::kInt16:
      return read_integer<int16_t>(in, key);
    case ValueType::kUint32:
      return read_integer<uint32_t>(in, key);
    case ValueType::kInt32:
      return read_integer<int32_t>(in, key);
    case ValueType::kInt64:
      return read_integer<int64_t>(in, key);
    case ValueType::kUint64: {
      const auto value = in.read<uint64_t>(key);
      return std::in_range<int64_t>(value) ? MetadataValue(static_cast<int64_t>(value)) : MetadataValue(value);
    }
    case ValueType::kBool:
      return read_bool(in, key);
    case ValueType::kFloat32:
      return double{in.read<float>(key)};
    case ValueType::kFloat64:
      return in.read<double>(key);
    case ValueType::kString:
      return std::string(in.read_string(key));
    case ValueType::kArray:
      return read_array(in, key);
  }
  in.fail(ErrorCode::kCorrupt, "metadata key {}: value of type {}; types are 0 to 12", quoted(key), type);
}

int64_t find_alignment(const ByteReader& in, const ModelContent& content) {
  const auto found = content.metadata.find("general.alignment");
  if (found == content.metadata.end()) return kDefaultAlignment;
  const auto* value = std::get_if<int64_t>(&found->second);
  if (value == nullptr || *value <= 0 || !std::has_single_bit(static_cast<uint64_t>(*value))) {
    in.fail(ErrorCode::kCorrupt, "general.alignment must be a power of two");
  }
  return *value;
}

// A tensor as the file describes it, before its data is known to be there.
struct Description {
  std::string name;
  std::vector<int64_t> shape;
  WeightFormat format;
  uint64_t offset;  // from the begin of the data
};

WeightFormat read_format(ByteReader& in, const std::string& tensor) {
  const auto type = in.read<uint32_t>(tensor);
  const std::string_view type_name = type < kTensorTypes.size() ? kTensorTypes[type] : "";
  std::string supported;
  for (const WeightFormat format : kWeightFormats) {
    if (name(format) == type_name) return format;
    supported += fmt::format("{}{}", supported.empty() ? "" : ", ", name(format));
  }
  in.fail(ErrorCode::kUnsupported, "tensor {} has type {} ({}); kivi reads {}", quoted(tensor), type,
          type_name.empty() ? "unknown" : type_name, supported);
}

Description read_description(ByteReader& in) {
  Description tensor;
  tensor.name = in.read_string("name of a tensor");
  const auto rank = in.read<uint32_t>(tensor.name);
  if (rank < 1 || rank > kMostDimensions) {
    in.fail(ErrorCode::kCorrupt, "tensor {} has {} dimensions; 1 to {} are allowed", quoted(tensor.name), rank,
            kMostDimensions);
  }
  for (uint32_t i = 0; i < rank; ++i) {
    const auto extent = in.read<uint64_t>(tensor.name);
    if (extent == 0 || !std::in_range<int64_t>(extent)) {
      in.fail(ErrorCode::kCorrupt, "tensor {}: dimension {} is {}, must be 1 to 2^63 - 1", quoted(tensor.name), i,
              extent);
    }
    tensor.shape.push_back(static_cast<int64_t>(extent));
  }
  tensor.format = read_format(in, tensor.name);
  tensor.offset = in.read<uint64_t>(tensor.name);
  return tensor;
}

// Bytes of the tensor's data, at most `limit`.
uint64_t checked_size(const ByteReader& in, const Description& tensor, uint64_t limit) {
  const int64_t elements = block_elements(tensor.format);
  const int64_t cols = tensor.shape[0];
  if (cols % elements != 0) {
    in.fail(ErrorCode::kCorrupt, "tensor {}: rows of {} elements are not whole blocks of {}, which have {}",
            quoted(tensor.name), cols, name(tensor.format), elements);
  }
  auto size = static_cast<uint64_t>(block_bytes(tensor.format));
  for (size_t i = 0; i < tensor.shape.size(); ++i) {
    const auto factor = static_cast<uint64_t>(i == 0 ? cols / elements : tensor.shape[i]);
    if (factor > limit / size) {
      in.fail(
          ErrorCode::kCorrupt,
          "tensor {} of shape [{}] in {} is larger than the file, which has {} bytes; it is truncated, fetch it again",
          quoted(tensor.name), fmt::join(tensor.shape, ", "), name(tensor.format), limit);
    }
    size *= factor;
  }
  return size;
}

ModelTensor place(const ByteReader& in, const Description& tensor, std::span<const std::byte> bytes,
                  uint64_t data_begin, int64_t alignment) {
  const uint64_t size = checked_size(in, tensor, bytes.size());
  if (tensor.offset % static_cast<uint64_t>(alignment) != 0) {
    in.fail(ErrorCode::kCorrupt, "tensor {}: offset {} is not a multiple of the alignment, {}", quoted(tensor.name),
            tensor.offset, alignment);
  }
  // An offset that would make the sum wrap around stands for the end itself.
  const uint64_t end = tensor.offset > INT64_MAX ? tensor.offset : data_begin + tensor.offset + size;
  if (end > bytes.size()) {
    in.fail(ErrorCode::kCorrupt, "tensor {} ends at byte {}, but the file has {}; it is truncated, fetch it again",
            quoted(tensor.name), end, bytes.size());
  }
  const int64_t rows = std::accumulate(tensor.shape.begin() + 1, tensor.shape.end(), int64_t{1}, std::multiplies<>());
  return {tensor.shape, {tensor.format, rows, tensor.shape[0], bytes.data() + data_begin + tensor.offset}};
}

ModelContent parse(std::span<const std::byte> bytes, const std::string& source) {
  ByteReader in(bytes, source);
  check_magic_and_version(in);
  // Counts are not trusted for allocation: each item is read, and so must be there.
  const auto n_tensors = in.read<uint64_t>("number of tensors");
  const auto n_entries = in.read<uint64_t>("number of metadata entries");

  ModelContent content;
  for (uint64_t i = 0; i < n_entries; ++i) {
    const std::string key(in.read_string("name of a metadata key"));
    if (!content.metadata.emplace(key, read_value(in, key)).second) {
      in.fail(ErrorCode::kCorrupt, "metadata key {} occurs twice", quoted(key));
    }
  }

  std::vector<Description> descriptions;
  for (uint64_t i = 0; i < n_tensors; ++i) descriptions.push_back(read_description(in));

  const int64_t alignment = find_alignment(in, content);
  const uint64_t mask = static_cast<uint64_t>(alignment) - 1;
  const uint64_t data_begin = (in.position() + mask) & ~mask;
  for (const Description& tensor : descriptions) {
    if (!content.tensors.emplace(tensor.name, place(in, tensor, bytes, data_begin, alignment)).second) {
      in.fail(ErrorCode::kCorrupt, "tensor {} occurs twice", quoted(tensor.name));
    }
  }
  return content;
}

}  // namespace

ModelFile read_gguf(const std::string& path) {
  std::vector<MappedFile> files;
  files.emplace_back(path);
  ModelContent content = parse(files.front().bytes(), path);
  return {path, std::move(files), std::move(content)};
}

ModelFile read_gguf(std::span<const std::byte> bytes) {
  const std::string source = "memory";
  return {source, {}, parse(bytes, source)};
}

}  // namespace kivi
