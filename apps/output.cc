#include "output.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "core/error.h"

namespace kivi::app {
namespace {

[[noreturn]] void fail_to_write(const std::string& path) {
  fail(ErrorCode::kNotFound, "{}: cannot be written ({}); choose another --json file", path, std::strerror(errno));
}

// A device or a pipe: written in place.
bool is_special(const std::string& path) {
  std::error_code error;
  return std::filesystem::exists(path, error) && !std::filesystem::is_regular_file(path, error);
}

}  // namespace

void JsonOutput::add_to(CLI::App& app) {
  app.add_option("--json", path_, "Write the result as JSON; - is standard output")->type_name("FILE");
}

void JsonOutput::check() const {
  if (path_.empty() || path_ == "-") return;
  const std::string folder = std::filesystem::path(path_).parent_path().string();
  const std::string target = is_special(path_) ? path_ : folder.empty() ? "." : folder;
  errno = EISDIR;
  if (std::filesystem::is_directory(path_) || access(target.c_str(), W_OK) != 0) fail_to_write(path_);
}

void JsonOutput::write(const nlohmann::ordered_json& json) const {
  if (path_.empty()) return;
  // Text that is not UTF-8, such as a file name, is written with replacement characters.
  const std::string text = json.dump(2, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
  if (path_ == "-") {
    fmt::print("{}", text);
    return;
  }
  const bool in_place = is_special(path_);
  const std::string temporary = in_place ? path_ : fmt::format("{}.{}.tmp", path_, getpid());
  std::ofstream out(temporary, std::ios::binary);
  out << text << std::flush;
  if (!out) {
    const int error = errno;
    if (!in_place) std::remove(temporary.c_str());
    errno = error;
    fail_to_write(path_);
  }
  out.close();
  if (!in_place && std::rename(temporary.c_str(), path_.c_str()) != 0) fail_to_write(path_);
}

void print_table(std::FILE* file, const std::vector<std::vector<std::string>>& rows) {
  std::vector<size_t> widths;
  for (const auto& row : rows) {
    widths.resize(std::max(widths.size(), row.size()));
    for (size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], row[i].size());
  }
  for (const auto& row : rows) {
    std::string line;
    for (size_t i = 0; i < row.size(); ++i) {
      line += i == 0 ? fmt::format("{:<{}}", row[i], widths[i]) : fmt::format("  {:>{}}", row[i], widths[i]);
    }
    fmt::print(file, "{}\n", line);
  }
}

std::string format_bytes(int64_t n_bytes) {
  constexpr double kUnit = 1024;
  const auto n = static_cast<double>(n_bytes);
  if (n < kUnit) return fmt::format("{} B", n_bytes);
  if (n < kUnit * kUnit) return fmt::format("{:.1f} KiB", n / kUnit);
  if (n < kUnit * kUnit * kUnit) return fmt::format("{:.2f} MiB", n / (kUnit * kUnit));
  return fmt::format("{:.2f} GiB", n / (kUnit * kUnit * kUnit));
}

Progress::Progress(std::string label)
    : label_(std::move(label)), is_live_(isatty(STDERR_FILENO) != 0), next_(start_ + std::chrono::seconds(2)) {}

Progress::~Progress() {
  if (is_live_ && is_shown_) fmt::print(stderr, "\r\033[K");
}

void Progress::update(double part) {
  const Clock::time_point now = Clock::now();
  if (now < next_ || part <= 0) return;
  next_ = now + (is_live_ ? std::chrono::milliseconds(200) : std::chrono::milliseconds(15000));
  is_shown_ = true;
  const double seconds = std::chrono::duration<double>(now - start_).count();
  const std::string line = fmt::format("{}: {:.0f} %, {:.0f} s left", label_, 100 * part, seconds / part - seconds);
  fmt::print(stderr, "{}{}{}", is_live_ ? "\r\033[K" : "", line, is_live_ ? "" : "\n");
  std::fflush(stderr);
}

}  // namespace kivi::app
