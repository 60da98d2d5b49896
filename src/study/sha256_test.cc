#include "study/sha256.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <string>

#include "core/error.h"

namespace kivi {
namespace {

TEST(Sha256, HasTheStandardsVectors) {
  EXPECT_EQ(sha256_of_text(""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  EXPECT_EQ(sha256_of_text("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  EXPECT_EQ(sha256_of_text("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq"),
            "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
  EXPECT_EQ(sha256_of_text(std::string(1000000, 'a')),
            "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
}

TEST(Sha256, DoesNotDependOnThePieces) {
  const std::string text(200, 'x');
  for (const size_t n : {1U, 63U, 64U, 65U}) {
    Sha256 sum;
    sum.add(std::string_view(text).substr(0, n));
    sum.add(std::string_view(text).substr(n));
    EXPECT_EQ(sum.hex(), sha256_of_text(text));
  }
}

TEST(Sha256, OfFilesAndFolders) {
  const std::filesystem::path folder =
      std::filesystem::path(testing::TempDir()) / ("kivi-sha256-" + std::to_string(getpid()));
  std::filesystem::remove_all(folder);
  std::filesystem::create_directories(folder);
  std::ofstream(folder / "a") << "abc";
  EXPECT_EQ(sha256_of_file(folder / "a"), sha256_of_text("abc"));
  const std::string one = sha256_of_file(folder);
  std::ofstream(folder / "b") << "abc";
  EXPECT_NE(sha256_of_file(folder), one);
  EXPECT_THROW(sha256_of_file(folder / "missing"), Error);
  std::filesystem::remove_all(folder);
}

}  // namespace
}  // namespace kivi
