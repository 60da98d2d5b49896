// How JSON is read: the text of a file, and a value in it that knows where it stands, so that what is wrong with it can
// be said.
#pragma once

#include <fmt/format.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include "core/error.h"
#include "core/quoted.h"

namespace kivi {

// The text, which must be JSON. Throws Error{kCorrupt} that begins with `source`.
inline nlohmann::json parse_json(std::span<const std::byte> text, const std::string& source) {
  const auto* begin = reinterpret_cast<const char*>(text.data());
  try {
    return nlohmann::json::parse(begin, begin + text.size());
  } catch (const nlohmann::json::parse_error& error) {
    fail(ErrorCode::kCorrupt, "{}: is not JSON from byte {} on; fetch the file again", source,
         std::min(error.byte, text.size()));
  } catch (const nlohmann::json::out_of_range&) {
    fail(ErrorCode::kCorrupt, "{}: has a number that is too large; fetch the file again", source);
  }
}

// The same of a JSON object.
inline nlohmann::json parse_json_object(std::span<const std::byte> text, const std::string& source) {
  nlohmann::json json = parse_json(text, source);
  if (!json.is_object()) fail(ErrorCode::kCorrupt, "{}: is JSON, but not an object; fetch the file again", source);
  return json;
}

class JsonField {
 public:
  // `source` names the file; the file's outermost value has no place. The value is not copied.
  JsonField(const nlohmann::json& value, std::string source, std::string place = {})
      : value_(&value), source_(std::move(source)), place_(std::move(place)) {}

  // A member that may be missing: then, and in what is no object, it is null.
  JsonField operator[](std::string_view name) const {
    static const nlohmann::json kNull;
    const auto it = value_->is_object() ? value_->find(name) : value_->end();
    const bool is_there = value_->is_object() && it != value_->end();
    return {is_there ? *it : kNull, source_, place_.empty() ? std::string(name) : fmt::format("{}.{}", place_, name)};
  }
  // An element of an array.
  JsonField operator[](size_t i) const { return {(*value_)[i], source_, fmt::format("{}[{}]", place_, i)}; }

  bool is_null() const { return value_->is_null(); }
  bool is_string() const { return value_->is_string(); }
  bool is_array() const { return value_->is_array(); }
  bool is_object() const { return value_->is_object(); }
  const nlohmann::json& value() const { return *value_; }

  // The value of its type; Error{kCorrupt} if it has another.
  const std::string& string() const { return checked<const std::string&>(value_->is_string(), "a string"); }
  const nlohmann::json& array() const { return value_->is_array() ? *value_ : refuse_type("an array"); }
  const nlohmann::json& object() const { return value_->is_object() ? *value_ : refuse_type("an object"); }
  bool boolean() const { return checked<bool>(value_->is_boolean(), "true or false"); }
  bool boolean_or(bool missing) const { return is_null() ? missing : boolean(); }
  // 0 to 2^31 - 1.
  int32_t id() const {
    const bool is_id = value_->is_number_unsigned() && std::in_range<int32_t>(value_->get<uint64_t>());
    return checked<int32_t>(is_id, "a number from 0 to 2147483647");
  }

  template <typename... Args>
  [[noreturn]] void fail(ErrorCode code, fmt::format_string<Args...> format, Args&&... args) const {
    const std::string place = place_.empty() ? "" : kivi::quoted(place_) + " ";
    throw Error(code, fmt::format("{}: {}{}", source_, place, fmt::format(format, std::forward<Args>(args)...)));
  }

 private:
  template <typename T>
  T checked(bool is_right, std::string_view type) const {
    if (!is_right) refuse_type(type);
    if constexpr (std::is_reference_v<T>)
      return value_->get_ref<T>();
    else
      return value_->get<T>();
  }
  [[noreturn]] const nlohmann::json& refuse_type(std::string_view type) const {
    if (is_null()) fail(ErrorCode::kCorrupt, "is missing, must be {}", type);
    fail(ErrorCode::kCorrupt, "is {}, must be {}", value_->type_name(), type);
  }

  const nlohmann::json* value_;
  std::string source_, place_;
};

}  // namespace kivi
