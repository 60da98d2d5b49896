// The parts of a study that are done, kept in a folder so that an interrupted study goes on where it was.
#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

namespace kivi {

class Parts {
 public:
  // Makes the folder. Throws Error{kNotFound} if it cannot be written.
  explicit Parts(std::filesystem::path folder);

  // What was kept for a part of that description: everything that its content depends on.
  std::optional<nlohmann::ordered_json> find(const nlohmann::ordered_json& description) const;
  void keep(const nlohmann::ordered_json& description, const nlohmann::ordered_json& content) const;

 private:
  std::filesystem::path path_of(const nlohmann::ordered_json& description) const;

  std::filesystem::path folder_;
};

// Whole or not at all. Throws Error{kNotFound}.
void write_file(const std::filesystem::path& path, const std::string& text);

}  // namespace kivi
