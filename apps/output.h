// What a subcommand writes: tables for people, JSON for scripts, progress for those who wait.
#pragma once

#include <CLI/CLI.hpp>
#include <chrono>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace kivi::app {

// --json FILE.
class JsonOutput {
 public:
  void add_to(CLI::App& app);
  // Before a long measurement: throws Error if the file could not be written.
  void check() const;
  // Writes the file whole or not at all. No effect without --json.
  void write(const nlohmann::ordered_json& json) const;
  // Where text for people goes: standard output, unless JSON goes there.
  std::FILE* text() const { return path_ == "-" ? stderr : stdout; }

 private:
  std::string path_;
};

// The first row is the header; the first column is aligned to the left, the others to the right.
void print_table(std::FILE* file, const std::vector<std::vector<std::string>>& rows);

// "1.44 MiB".
std::string format_bytes(int64_t n_bytes);

// Tells on standard error how far something is that takes longer than two seconds: a live line on a terminal, a line
// now and then elsewhere.
class Progress {
 public:
  explicit Progress(std::string label);
  ~Progress();  // clears the live line
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  void update(double part);  // in [0, 1]

 private:
  using Clock = std::chrono::steady_clock;
  std::string label_;
  bool is_live_;
  bool is_shown_ = false;
  Clock::time_point start_ = Clock::now();
  Clock::time_point next_;
};

}  // namespace kivi::app
