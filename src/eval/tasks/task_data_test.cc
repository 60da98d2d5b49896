#include "eval/tasks/task_data.h"

#include <gtest/gtest.h>

#include <filesystem>

#include "io/safetensors_builder.h"

namespace kivi {
namespace {

std::string message_of(const std::function<void()>& run) {
  try {
    run();
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

TEST(TaskDataTest, FindsASetBelowTheFolderOrInIt) {
  const TemporaryFolder folder;
  std::filesystem::create_directory(folder.path("set"));
  folder.write("set/a.jsonl", "{}");
  EXPECT_EQ(find_task_file(folder.path(), "set", "a.jsonl"), folder.path("set/a.jsonl"));
  EXPECT_EQ(find_task_file(folder.path("set"), "set", "a.jsonl"), folder.path("set/a.jsonl"));
}

TEST(TaskDataTest, SaysWhatIsMissing) {
  const TemporaryFolder folder;
  EXPECT_EQ(message_of([&] { find_task_file(folder.path(), "set", "a.jsonl"); }),
            "--data " + folder.path() + ": has neither set/a.jsonl nor a.jsonl; give the folder of the data sets");
  EXPECT_EQ(message_of([&] { find_task_file("/no/such", "set", "a.jsonl"); }),
            "--data /no/such: is not a folder; give the one that has set/a.jsonl");
  EXPECT_NE(message_of([&] { find_task_texts(folder.path(), "set"); }), "");
}

TEST(TaskDataTest, TextsComeInTheOrderOfTheirNamesWithoutTheLicence) {
  const TemporaryFolder folder;
  for (const char* name : {"b.txt", "a.txt", "LICENSE.txt", "c.md"}) folder.write(name, "x");
  EXPECT_EQ(find_task_texts(folder.path(), "set"), (std::vector{folder.path("a.txt"), folder.path("b.txt")}));
}

TEST(TaskDataTest, VisitsLinesThatAreNotBlank) {
  const TemporaryFolder folder;
  folder.write("a.jsonl", "{\"x\": \"1\"}\r\n\n  \n{\"x\": \"2\"}");
  std::string seen;
  for_each_json_line(folder.path("a.jsonl"), [&](const JsonField& line) { seen += line["x"].string(); });
  EXPECT_EQ(seen, "12");
}

TEST(TaskDataTest, NamesTheLineThatIsWrong) {
  const TemporaryFolder folder;
  const std::string path = folder.path("a.jsonl");
  const auto read = [&](const char* content) {
    folder.write("a.jsonl", content);
    return message_of([&] { for_each_json_line(path, [](const JsonField& line) { line["x"].string(); }); });
  };
  EXPECT_EQ(read("{\"x\": \"1\"}\n{\"x\": "), path + ", line 2: is not JSON from byte 6 on; fetch the file again");
  EXPECT_EQ(read("[1]"), path + ", line 1: is JSON, but not an object; fetch the file again");
  EXPECT_EQ(read("{}"), path + ", line 1: 'x' is missing, must be a string");
  EXPECT_EQ(read("\n\n"), path + ": has no line; fetch it again");
}

}  // namespace
}  // namespace kivi
