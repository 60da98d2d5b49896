#include "server/api_error.h"

#include <nlohmann/json.hpp>

#include "server/json_fields.h"

namespace kivi {
namespace {

const char* type_of(int status) {
  switch (status) {
    case 401:
      return "authentication_error";
    case 403:
      return "permission_error";
    case 404:
      return "not_found_error";
    default:
      return status >= 500 ? "server_error" : "invalid_request_error";
  }
}

nlohmann::ordered_json or_null(const std::string& text) {
  return text.empty() ? nlohmann::ordered_json() : nlohmann::ordered_json(text);
}

}  // namespace

std::string ApiError::json() const {
  const nlohmann::ordered_json error = {
      {"message", message}, {"type", type_of(status)}, {"param", or_null(param)}, {"code", or_null(code)}};
  return dump({{"error", error}});
}

HttpResponse ApiError::response() const {
  HttpResponse response{.status = status, .body = json()};
  if (status == 503) response.headers.push_back({"Retry-After", "1"});
  if (status == 401) response.headers.push_back({"WWW-Authenticate", "Bearer"});
  return response;
}

}  // namespace kivi
