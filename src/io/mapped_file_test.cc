#include "io/mapped_file.h"

#include <gtest/gtest.h>

#include <fstream>
#include <string>
#include <utility>

#include "core/error.h"

namespace kivi {
namespace {

std::string write_file(const std::string& name, std::string_view content) {
  std::string path = testing::TempDir() + name;
  std::ofstream(path, std::ios::binary) << content;
  return path;
}

std::string text(const MappedFile& file) {
  return {reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size()};
}

ErrorCode error_of(const std::string& path) {
  try {
    const MappedFile file(path);
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find(path), std::string::npos) << error.what();
    return error.code();
  }
  return ErrorCode::kInternal;
}

TEST(MappedFile, HasTheBytesOfTheFile) {
  const MappedFile file(write_file("mapped_file", "some bytes"));
  EXPECT_EQ(text(file), "some bytes");
}

TEST(MappedFile, ReadingAheadLeavesItAsItIs) {
  const std::string content(100'000, 'x');
  const MappedFile file(write_file("mapped_file_ahead", content));
  read_ahead(file.bytes());
  read_ahead(file.bytes().subspan(4097, 9'000));
  read_ahead({});
  EXPECT_EQ(text(file), content);
}

TEST(MappedFile, Moves) {
  MappedFile first(write_file("mapped_file_1", "first"));
  MappedFile moved(std::move(first));
  EXPECT_EQ(text(moved), "first");
  moved = MappedFile(write_file("mapped_file_2", "second"));
  EXPECT_EQ(text(moved), "second");
}

TEST(MappedFile, SaysWhatIsWrongWithAPath) {
  EXPECT_EQ(error_of(testing::TempDir() + "no such file"), ErrorCode::kNotFound);
  EXPECT_EQ(error_of(testing::TempDir()), ErrorCode::kCorrupt);
  EXPECT_EQ(error_of(write_file("mapped_file_empty", "")), ErrorCode::kCorrupt);
}

}  // namespace
}  // namespace kivi
