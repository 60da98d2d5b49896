// Requests and responses as the server's logic sees them.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace kivi {

struct HttpHeader {
  std::string name;
  std::string value;
};

struct HttpRequest {
  std::string method{};
  std::string path{};  // without the query
  std::vector<HttpHeader> headers{};
  std::string body{};

  // The value of a header, whatever the case of its name; empty if there is none.
  std::string_view header(std::string_view name) const;
};

struct HttpResponse {
  int status = 200;
  std::string content_type = "application/json";
  std::string body{};
  std::vector<HttpHeader> headers{};
};

}  // namespace kivi
