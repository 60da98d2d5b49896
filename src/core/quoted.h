// How messages show text that comes from a file.
#pragma once

#include <fmt/format.h>

#include <string>
#include <string_view>

namespace kivi {

// The text in quotes, on one line and short, whatever bytes it has.
inline std::string quoted(std::string_view text) {
  constexpr size_t kLongest = 80;
  std::string shown;
  for (const char c : text.substr(0, kLongest)) shown += c >= ' ' && c <= '~' ? c : '?';
  return fmt::format("'{}{}'", shown, text.size() > kLongest ? "..." : "");
}

}  // namespace kivi
