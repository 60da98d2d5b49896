// What is wrong with a request, in OpenAI's shape.
#pragma once

#include <fmt/format.h>

#include <string>
#include <utility>

#include "server/http_message.h"

namespace kivi {

// Thrown while a request is read; a value from there on.
struct ApiError {
  int status = 400;
  std::string message{};
  std::string param{};  // the field; empty: none
  std::string code{};   // for programs; empty: none

  // {"error":{"message","type","param","code"}}
  std::string json() const;
  HttpResponse response() const;
};

// Throws a 400 that names the field.
template <typename... Args>
[[noreturn]] void refuse(const std::string& param, fmt::format_string<Args...> format, Args&&... args) {
  throw ApiError{.message = fmt::format(format, std::forward<Args>(args)...), .param = param};
}

}  // namespace kivi
