#include "eval/tasks/task_data.h"

#include <algorithm>
#include <filesystem>

#include "io/mapped_file.h"

namespace kivi {
namespace fs = std::filesystem;
namespace {

[[noreturn]] void fail_without(const std::string& data, const std::string& set, const std::string& file) {
  std::error_code error;
  if (!fs::is_directory(data, error)) {
    fail(ErrorCode::kNotFound, "--data {}: is not a folder; give the one that has {}/{}", data, set, file);
  }
  fail(ErrorCode::kNotFound, "--data {}: has neither {}/{} nor {}; give the folder of the data sets", data, set, file,
       file);
}

std::vector<std::string> texts_in(const fs::path& folder) {
  std::vector<std::string> paths;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(folder, error)) {
    const std::string name = entry.path().filename().string();
    if (name.ends_with(".txt") && !name.starts_with("LICENSE")) paths.push_back(entry.path().string());
  }
  std::ranges::sort(paths);
  return paths;
}

}  // namespace

std::string find_task_file(const std::string& data, const std::string& set, const std::string& file) {
  for (const fs::path& folder : {fs::path(data) / set, fs::path(data)}) {
    std::error_code error;
    if (fs::exists(folder / file, error)) return (folder / file).string();
  }
  fail_without(data, set, file);
}

std::vector<std::string> find_task_texts(const std::string& data, const std::string& set) {
  for (const fs::path& folder : {fs::path(data) / set, fs::path(data)}) {
    std::vector<std::string> paths = texts_in(folder);
    if (!paths.empty()) return paths;
  }
  fail_without(data, set, "*.txt");
}

std::string read_task_text(const std::string& path) {
  const MappedFile file(path);
  return {reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size()};
}

void for_each_json_line(const std::string& path, const std::function<void(const JsonField&)>& visit) {
  const std::string text = read_task_text(path);
  int64_t number = 0;
  bool any = false;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    const std::span<const char> line{text.data() + begin, end - begin};
    begin = end + 1;
    ++number;
    if (std::string_view(line.data(), line.size()).find_first_not_of(" \t\r") == std::string_view::npos) continue;
    const std::string source = fmt::format("{}, line {}", path, number);
    const nlohmann::json json = parse_json_object(std::as_bytes(line), source);
    visit(JsonField(json, source));
    any = true;
  }
  if (!any) fail(ErrorCode::kCorrupt, "{}: has no line; fetch it again", path);
}

}  // namespace kivi
