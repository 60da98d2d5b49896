// How io reads JSON. For .cc files only.
#pragma once

#include <algorithm>
#include <cstddef>
#include <nlohmann/json.hpp>
#include <span>
#include <string>

#include "core/error.h"

namespace kivi {

// The text, which must be a JSON object. Throws Error{kCorrupt} that begins with `source`.
inline nlohmann::json parse_json_object(std::span<const std::byte> text, const std::string& source) {
  const auto* begin = reinterpret_cast<const char*>(text.data());
  nlohmann::json json;
  try {
    json = nlohmann::json::parse(begin, begin + text.size());
  } catch (const nlohmann::json::parse_error& error) {
    fail(ErrorCode::kCorrupt, "{}: is not JSON from byte {} on; fetch the file again", source,
         std::min(error.byte, text.size()));
  } catch (const nlohmann::json::out_of_range&) {
    fail(ErrorCode::kCorrupt, "{}: has a number that is too large; fetch the file again", source);
  }
  if (!json.is_object()) fail(ErrorCode::kCorrupt, "{}: is JSON, but not an object; fetch the file again", source);
  return json;
}

}  // namespace kivi
