// How the server reads and prints JSON. A field of an object that is missing or null has its default; one of another
// type, or out of range, throws an ApiError that names it, its value and what is allowed.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "server/api_error.h"

namespace kivi {

// A number's range, ends included.
struct Range {
  double low;
  double high;
  bool excludes_low = false;
};

// Throws an ApiError for what is not JSON or not an object.
nlohmann::json parse_object(std::string_view body);
// In one line; bytes that are not UTF-8 become U+FFFD.
std::string dump(const nlohmann::ordered_json& json);
// The beginning of a value, for messages.
std::string shown(const nlohmann::json& value);

class JsonFields {
 public:
  // `object` must outlive the reader. `path` goes before names in messages: "stream_options.".
  explicit JsonFields(const nlohmann::json& object, std::string path = {}) : object_(object), path_(std::move(path)) {}

  const nlohmann::json* find(const std::string& name) const;  // null if missing or null
  bool flag(const std::string& name, bool fallback) const;
  std::string text(const std::string& name, const std::string& fallback) const;
  double number(const std::string& name, double fallback, const Range& range) const;
  int64_t integer(const std::string& name, int64_t fallback, int64_t low, int64_t high) const;
  std::vector<int32_t> ids(const std::string& name) const;  // empty if missing

  [[noreturn]] void wrong(const std::string& name, const std::string& wanted) const;
  std::string full(const std::string& name) const { return path_ + name; }

 private:
  const nlohmann::json& object_;
  std::string path_;
};

}  // namespace kivi
