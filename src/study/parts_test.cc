#include "study/parts.h"

#include <gtest/gtest.h>

#include <fstream>

#include "core/error.h"

namespace kivi {
namespace {

namespace fs = std::filesystem;

class PartsTest : public ::testing::Test {
 protected:
  void SetUp() override { fs::remove_all(folder); }
  void TearDown() override { fs::remove_all(folder); }

  fs::path folder = fs::path(testing::TempDir()) / "kivi_parts_test";
};

TEST_F(PartsTest, FindsWhatWasKeptUnderTheSameDescription) {
  Parts(folder / "a").keep({{"chunk", 1}}, {1, 2, 3});
  const Parts parts(folder / "a");
  EXPECT_EQ(parts.find({{"chunk", 1}}), (nlohmann::ordered_json{1, 2, 3}));
  EXPECT_EQ(parts.find({{"chunk", 2}}), std::nullopt);
}

TEST_F(PartsTest, ADamagedPartIsNotThere) {
  const Parts parts(folder);
  parts.keep({{"chunk", 1}}, "content");
  for (const auto& entry : fs::directory_iterator(folder)) fs::resize_file(entry, 10);
  EXPECT_EQ(parts.find({{"chunk", 1}}), std::nullopt);
}

TEST_F(PartsTest, AFolderThatCannotBeIsOneClearError) {
  fs::create_directories(folder);
  std::ofstream(folder / "file") << "x";
  try {
    Parts(folder / "file" / "parts");
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kNotFound);
    EXPECT_NE(std::string(error.what()).find("--out"), std::string::npos);
  }
}

}  // namespace
}  // namespace kivi
