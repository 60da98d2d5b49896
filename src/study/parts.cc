#include "study/parts.h"

#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <fstream>

#include "core/error.h"
#include "study/sha256.h"

namespace kivi {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

Parts::Parts(fs::path folder) : folder_(std::move(folder)) {
  std::error_code error;
  fs::create_directories(folder_, error);
  if (error || access(folder_.c_str(), W_OK) != 0) {
    fail(ErrorCode::kNotFound, "{}: cannot be written ({}); choose another --out folder", folder_.string(),
         error ? error.message() : std::strerror(errno));
  }
}

fs::path Parts::path_of(const Json& description) const {
  return folder_ / (sha256_of_text(description.dump()).substr(0, 24) + ".json");
}

std::optional<Json> Parts::find(const Json& description) const {
  std::ifstream in(path_of(description));
  if (!in) return std::nullopt;
  const Json part = Json::parse(in, nullptr, false);
  if (!part.is_object() || !part.contains("content") || part.value("description", Json()) != description)
    return std::nullopt;
  return part["content"];
}

void Parts::keep(const Json& description, const Json& content) const {
  write_file(path_of(description), Json{{"description", description}, {"content", content}}.dump());
}

void write_file(const fs::path& path, const std::string& text) {
  const fs::path temporary = path.string() + ".tmp";
  std::ofstream out(temporary, std::ios::binary);
  out << text << std::flush;
  std::error_code error;
  if (out) {
    out.close();
    fs::rename(temporary, path, error);
    if (!error) return;
  }
  const std::string reason = error ? error.message() : std::strerror(errno);
  fs::remove(temporary, error);
  fail(ErrorCode::kNotFound, "{}: cannot be written ({}); choose another --out folder", path.string(), reason);
}

}  // namespace kivi
