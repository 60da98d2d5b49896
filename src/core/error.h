// The one error type. A message holds what, the value, the limit and the fix:
//   "group_size 48: must divide residual_length 128; use 32, 64 or 128"
#pragma once

#include <fmt/core.h>

#include <stdexcept>
#include <string>
#include <utility>

namespace kivi {

enum class ErrorCode {
  kInvalidArgument,  // the caller's value is out of range or contradicts another
  kUnsupported,      // valid, but not something this build, machine or version can do
  kNotFound,         // a file, model or name that is not there
  kCorrupt,          // a file whose content breaks its own format
  kOutOfMemory,      // no room: memory, or pages of a KV cache
  kInternal,         // a bug in kivi
};

class Error : public std::runtime_error {
 public:
  Error(ErrorCode code, const std::string& message) : std::runtime_error(message), code_(code) {}
  ErrorCode code() const { return code_; }

 private:
  ErrorCode code_;
};

// Throws Error with a formatted message.
template <typename... Args>
[[noreturn]] void fail(ErrorCode code, fmt::format_string<Args...> format, Args&&... args) {
  throw Error(code, fmt::format(format, std::forward<Args>(args)...));
}

}  // namespace kivi
