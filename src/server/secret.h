// Comparison of secrets.
#pragma once

#include <string_view>

namespace kivi {

// In a time that depends on the length of `given` alone.
inline bool equal_in_constant_time(std::string_view given, std::string_view secret) {
  unsigned difference = given.size() == secret.size() ? 0U : 1U;
  for (size_t i = 0; i < given.size(); ++i) {
    const char wanted = secret.empty() ? '\0' : secret[i % secret.size()];
    difference |= static_cast<unsigned>(static_cast<unsigned char>(given[i] ^ wanted));
  }
  return difference == 0;
}

}  // namespace kivi
