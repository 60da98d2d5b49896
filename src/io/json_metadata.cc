#include "io/json_metadata.h"

#include <optional>

#include "core/quoted.h"
#include "io/json_field.h"
#include "io/mapped_file.h"

namespace kivi {
namespace {

using nlohmann::json;

template <typename T>
std::vector<T> read_elements(const json& array) {
  std::vector<T> values;
  for (const json& element : array) {
    values.push_back(element.is_boolean() ? static_cast<T>(element.get<bool>()) : element.get<T>());
  }
  return values;
}

bool fits_int64(const json& value) {
  return value.is_number_integer() && (!value.is_number_unsigned() || std::in_range<int64_t>(value.get<uint64_t>()));
}

std::optional<MetadataValue> read_array(const json& array) {
  const auto all = [&](auto is) { return std::ranges::all_of(array, is); };
  if (all([](const json& e) { return fits_int64(e) || e.is_boolean(); })) return read_elements<int64_t>(array);
  if (all([](const json& e) { return e.is_number(); })) return read_elements<double>(array);
  if (all([](const json& e) { return e.is_string(); })) return array.get<std::vector<std::string>>();
  return std::nullopt;
}

std::optional<MetadataValue> read_value(const json& value) {
  if (value.is_boolean()) return value.get<bool>();
  if (fits_int64(value)) return value.get<int64_t>();
  if (value.is_number_unsigned()) return value.get<uint64_t>();
  if (value.is_number()) return value.get<double>();
  if (value.is_string()) return value.get<std::string>();
  if (value.is_array()) return read_array(value);
  return std::nullopt;
}

void add_values(const json& object, const std::string& path, int depth, const std::string& source, Metadata& out) {
  if (depth > kDeepestJson) {
    fail(ErrorCode::kCorrupt, "{}: {} is nested deeper than {} objects", source, kivi::quoted(path), kDeepestJson);
  }
  for (const auto& [key, value] : object.items()) {
    const std::string name = path.empty() ? key : path + "." + key;
    if (value.is_object()) {
      add_values(value, name, depth + 1, source, out);
    } else if (std::optional<MetadataValue> read = read_value(value)) {
      out.insert_or_assign(name, *std::move(read));
    }
  }
}

}  // namespace

Metadata read_json_metadata(std::span<const std::byte> text, const std::string& source) {
  Metadata out;
  add_values(parse_json_object(text, source), "", 1, source, out);
  return out;
}

Metadata read_json_metadata(const std::string& path) {
  return read_json_metadata(MappedFile(path).bytes(), path);
}

}  // namespace kivi
