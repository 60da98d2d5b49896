#include "server/json_fields.h"

#include <algorithm>
#include <limits>
#include <nlohmann/json.hpp>

namespace kivi {

using Json = nlohmann::json;

namespace {

constexpr int kMostDepth = 32;  // no request needs more; printing a value takes stack for each

// How deep arrays and objects are nested at most, in text that is JSON.
int depth_of(std::string_view text) {
  int depth = 0;
  int most = 0;
  bool in_string = false;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (in_string && c == '\\') ++i;
    if (c == '"') in_string = !in_string;
    if (in_string) continue;
    if (c == '[' || c == '{') most = std::max(most, ++depth);
    if (c == ']' || c == '}') --depth;
  }
  return most;
}

}  // namespace

std::string dump(const nlohmann::ordered_json& json) {
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

std::string shown(const Json& value) {
  constexpr size_t kMost = 60;
  if (value.is_structured() && value.size() > kMost) return value.is_array() ? "[...]" : "{...}";
  std::string text = value.dump(-1, ' ', true, Json::error_handler_t::replace);
  if (text.size() > kMost) text = text.substr(0, kMost) + "...";
  return text;
}

Json parse_object(std::string_view body) {
  if (depth_of(body) > kMostDepth) refuse("", "the request body is nested deeper than {} levels", kMostDepth);
  Json json = Json::parse(body, nullptr, false);
  if (json.is_discarded()) refuse("", "the request body is not valid JSON (in UTF-8)");
  if (!json.is_object()) refuse("", "the request body must be a JSON object");
  return json;
}

const Json* JsonFields::find(const std::string& name) const {
  const auto it = object_.find(name);
  return it == object_.end() || it->is_null() ? nullptr : &*it;
}

void JsonFields::wrong(const std::string& name, const std::string& wanted) const {
  const Json* value = find(name);
  refuse(full(name), "{} {}: must be {}", full(name), value != nullptr ? shown(*value) : "is missing", wanted);
}

bool JsonFields::flag(const std::string& name, bool fallback) const {
  const Json* value = find(name);
  if (value == nullptr) return fallback;
  if (!value->is_boolean()) wrong(name, "true or false");
  return value->get<bool>();
}

std::string JsonFields::text(const std::string& name, const std::string& fallback) const {
  const Json* value = find(name);
  if (value == nullptr) return fallback;
  if (!value->is_string()) wrong(name, "a string");
  return value->get<std::string>();
}

double JsonFields::number(const std::string& name, double fallback, const Range& range) const {
  const Json* value = find(name);
  if (value == nullptr) return fallback;
  const auto wanted = [&range] {
    return range.excludes_low ? fmt::format("a number above {} and at most {}", range.low, range.high)
                              : fmt::format("a number from {} to {}", range.low, range.high);
  };
  if (!value->is_number()) wrong(name, wanted());
  const auto number = value->get<double>();
  const bool is_above = range.excludes_low ? number > range.low : number >= range.low;
  if (!is_above || !(number <= range.high)) wrong(name, wanted());
  return number;
}

int64_t JsonFields::integer(const std::string& name, int64_t fallback, int64_t low, int64_t high) const {
  const Json* value = find(name);
  if (value == nullptr) return fallback;
  const auto wanted = [&] {
    constexpr auto kMost = std::numeric_limits<int64_t>::max();
    return high == kMost ? fmt::format("an integer of at least {}", low)
                         : fmt::format("an integer from {} to {}", low, high);
  };
  const bool is_too_large = value->is_number_unsigned() && value->get<uint64_t>() > uint64_t{1} << 62;
  if (!value->is_number_integer() || is_too_large) wrong(name, wanted());
  const auto number = value->get<int64_t>();
  if (number < low || number > high) wrong(name, wanted());
  return number;
}

std::vector<int32_t> JsonFields::ids(const std::string& name) const {
  const Json* value = find(name);
  std::vector<int32_t> ids;
  if (value == nullptr) return ids;
  if (!value->is_array()) wrong(name, "a list of token ids");
  for (const Json& id : *value) {
    const bool is_id = id.is_number_integer() && id >= 0 && id <= std::numeric_limits<int32_t>::max();
    if (!is_id) refuse(full(name), "{} has {}: must be a list of token ids, integers from 0", full(name), shown(id));
    ids.push_back(id.get<int32_t>());
  }
  return ids;
}

}  // namespace kivi
