#include "io/safetensors.h"

#include <fmt/format.h>

#include <array>
#include <filesystem>
#include <map>
#include <numeric>
#include <utility>

#include "core/quoted.h"
#include "io/byte_reader.h"
#include "io/json_field.h"

// A file: the length of the header, 64 bits; the header, a JSON object that describes every tensor; then the tensors'
// data, one after the other without a gap.

namespace kivi {
namespace {

using Json = nlohmann::json;

constexpr std::array kFormats = {WeightFormat::kF32, WeightFormat::kF16, WeightFormat::kBF16};
constexpr std::string_view kAbout = "__metadata__";  // strings about the file, beside the tensors

// A tensor as the header describes it.
struct Description {
  uint64_t begin, end;  // bytes from the begin of the data
  std::string name;
  WeightFormat format;
  std::vector<int64_t> shape;  // the file's order: the last is contiguous
};

class Header {
 public:
  Header(std::span<const std::byte> bytes, std::string source) : source_(std::move(source)) {
    ByteReader in(bytes, source_);
    const auto size = in.read<uint64_t>("the header's length");
    if (size > in.remaining()) {
      in.fail(ErrorCode::kCorrupt,
              "has a header of {} bytes, but only {} follow; it is truncated or no safetensors file, fetch it again",
              size, in.remaining());
    }
    const std::span<const std::byte> text = bytes.subspan(in.position(), size);
    data_ = bytes.subspan(in.position() + size);
    const Json header = parse_json_object(text, source_);
    for (const auto& [name, description] : header.items()) {
      if (name != kAbout) tensors_.push_back(read_description(name, description));
    }
    std::ranges::sort(tensors_, {}, &Description::begin);
    check_extents();
  }

  std::span<const std::byte> data() const { return data_; }
  const std::vector<Description>& tensors() const { return tensors_; }

 private:
  Description read_description(const std::string& name, const Json& json) const {
    const auto field = [&](const char* key) -> const Json& {
      const auto found = json.is_object() ? json.find(key) : json.end();
      if (found == json.end()) fail(ErrorCode::kCorrupt, "{}: tensor {} has no {}", source_, kivi::quoted(name), key);
      return *found;
    };
    Description tensor{.begin = 0, .end = 0, .name = name, .format = read_format(name, field("dtype")), .shape = {}};
    tensor.shape = read_numbers(name, "shape", field("shape"));
    for (const int64_t extent : tensor.shape) {
      if (extent < 1)
        fail(ErrorCode::kCorrupt, "{}: tensor {}: a dimension is {}, must be above 0", source_, kivi::quoted(name),
             extent);
    }
    const std::vector<int64_t> offsets = read_numbers(name, "data_offsets", field("data_offsets"));
    if (offsets.size() != 2 || offsets[0] < 0 || offsets[1] < offsets[0]) {
      fail(ErrorCode::kCorrupt, "{}: tensor {}: data_offsets are [{}], must be a begin and an end", source_,
           kivi::quoted(name), fmt::join(offsets, ", "));
    }
    tensor.begin = static_cast<uint64_t>(offsets[0]);
    tensor.end = static_cast<uint64_t>(offsets[1]);
    check_size(tensor);
    return tensor;
  }

  WeightFormat read_format(const std::string& tensor, const Json& dtype) const {
    const std::string text = dtype.is_string() ? dtype.get<std::string>() : dtype.type_name();
    for (const WeightFormat format : kFormats) {
      if (text == name(format)) return format;
    }
    fail(ErrorCode::kUnsupported, "{}: tensor {} has type {}; kivi reads F32, F16 and BF16 from safetensors", source_,
         kivi::quoted(tensor), kivi::quoted(text));
  }

  std::vector<int64_t> read_numbers(const std::string& tensor, std::string_view what, const Json& array) const {
    std::vector<int64_t> numbers;
    const bool is_array = array.is_array();
    for (const Json& element : is_array ? array : Json::array()) {
      if (element.is_number_unsigned() && std::in_range<int64_t>(element.get<uint64_t>())) {
        numbers.push_back(element.get<int64_t>());
      }
    }
    if (!is_array || numbers.size() != array.size()) {
      fail(ErrorCode::kCorrupt, "{}: tensor {}: {} must be numbers from 0 to 2^63 - 1", source_, kivi::quoted(tensor),
           what);
    }
    return numbers;
  }

  void check_size(const Description& tensor) const {
    const uint64_t given = tensor.end - tensor.begin;
    auto size = static_cast<uint64_t>(block_bytes(tensor.format));
    for (const int64_t extent : tensor.shape) {
      const bool is_more = size > given / static_cast<uint64_t>(extent);
      size = is_more ? UINT64_MAX : size * static_cast<uint64_t>(extent);
      if (is_more) break;
    }
    if (size != given) {
      fail(ErrorCode::kCorrupt,
           "{}: tensor {} of shape [{}] in {} does not take the {} bytes that data_offsets give it", source_,
           kivi::quoted(tensor.name), fmt::join(tensor.shape, ", "), name(tensor.format), given);
    }
  }

  // Each tensor begins where the one before it ends, and the last ends with the file.
  void check_extents() const {
    uint64_t end = 0;
    for (const Description& tensor : tensors_) {
      if (tensor.begin != end) {
        fail(ErrorCode::kCorrupt, "{}: tensor {} begins at byte {} of the data, but the one before it ends at {}",
             source_, kivi::quoted(tensor.name), tensor.begin, end);
      }
      end = tensor.end;
    }
    if (end != data_.size()) {
      fail(ErrorCode::kCorrupt,
           "{}: its tensors take {} bytes, but {} follow the header; it is truncated, fetch it again", source_, end,
           data_.size());
    }
  }

  std::string source_;
  std::span<const std::byte> data_;
  std::vector<Description> tensors_;  // as they lie
};

constexpr std::string_view kIndexFile = "model.safetensors.index.json";
constexpr std::string_view kOnlyFile = "model.safetensors";
constexpr std::string_view kWeightMap = "weight_map";

bool is_there(const std::filesystem::path& path) {
  std::error_code ignored;
  return std::filesystem::exists(path, ignored);
}

// The tensors that each file is to have.
std::map<std::string, std::vector<std::string>> read_index(const MappedFile& index) {
  const Json json = parse_json_object(index.bytes(), index.path());
  const auto map = json.find(kWeightMap);
  if (map == json.end() || !map->is_object() || map->empty()) {
    fail(ErrorCode::kCorrupt, "{}: has no {} that names a tensor's file; fetch it again", index.path(), kWeightMap);
  }
  std::map<std::string, std::vector<std::string>> files;
  for (const auto& [tensor, file] : map->items()) {
    const std::string name = file.is_string() ? file.get<std::string>() : "";
    if (name.empty() || name == ".." || name.find('/') != std::string::npos || name.find('\0') != std::string::npos) {
      fail(ErrorCode::kCorrupt, "{}: the file of tensor {} is {}, must be a file's name", index.path(),
           kivi::quoted(tensor), kivi::quoted(name));
    }
    files[name].push_back(tensor);
  }
  return files;
}

void add_file(const std::filesystem::path& path, SafetensorsFolder& folder) {
  folder.files.emplace_back(path.string());
  for (auto& [name, tensor] : read_safetensors(folder.files.back().bytes(), path.string())) {
    if (!folder.tensors.emplace(name, std::move(tensor)).second) {
      fail(ErrorCode::kCorrupt, "{}: tensor {} is in another file of the folder, too", path.string(),
           kivi::quoted(name));
    }
  }
}

}  // namespace

Tensors read_safetensors(std::span<const std::byte> bytes, const std::string& source) {
  const Header header(bytes, source);
  Tensors tensors;
  for (const Description& tensor : header.tensors()) {
    std::vector<int64_t> shape(tensor.shape.rbegin(), tensor.shape.rend());
    if (shape.empty()) shape = {1};
    const int64_t rows = std::accumulate(shape.begin() + 1, shape.end(), int64_t{1}, std::multiplies<>());
    const WeightView view{tensor.format, rows, shape[0], header.data().data() + tensor.begin};
    tensors.emplace(tensor.name, ModelTensor{std::move(shape), view});
  }
  return tensors;
}

SafetensorsFolder read_safetensors_folder(const std::string& folder) {
  namespace fs = std::filesystem;
  SafetensorsFolder out;
  const fs::path path(folder);
  if (!is_there(path / kIndexFile)) {
    if (!is_there(path / kOnlyFile)) {
      fail(ErrorCode::kNotFound, "{}: has neither {} nor {}; kivi reads weights in these or in a GGUF file", folder,
           kOnlyFile, kIndexFile);
    }
    add_file(path / kOnlyFile, out);
    return out;
  }
  const MappedFile index((path / kIndexFile).string());
  for (const auto& [file, tensors] : read_index(index)) {
    if (!is_there(path / file)) {
      fail(ErrorCode::kNotFound, "{}: has no {}, which its index names; fetch that file", folder, kivi::quoted(file));
    }
    add_file(path / file, out);
    for (const std::string& tensor : tensors) {
      if (!out.tensors.contains(tensor)) {
        fail(ErrorCode::kCorrupt, "{}: names tensor {} in {}, which does not have it; fetch both again", index.path(),
             kivi::quoted(tensor), kivi::quoted(file));
      }
    }
  }
  return out;
}

}  // namespace kivi
