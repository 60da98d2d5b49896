#include "text/normaliser.h"

#include <gtest/gtest.h>

namespace kivi {
namespace {

using Kind = TextChange::Kind;

std::string apply(std::vector<TextChange> changes, std::string_view text, bool is_first = true) {
  std::string storage;
  return std::string(Normaliser(std::move(changes)).apply(text, is_first, storage));
}

TEST(Normaliser, ChangesFollowOneAnother) {
  EXPECT_EQ(apply({}, "a"), "a");
  EXPECT_EQ(apply({{Kind::kPrepend, {}, "_"}, {Kind::kReplace, " ", "_"}}, " a b"), "__a_b");
  EXPECT_EQ(apply({{Kind::kReplace, "aa", "b"}, {Kind::kReplace, "bb", "c"}}, "aaaaa"), "ca");
}

TEST(Normaliser, PrefixesDependOnTheText) {
  EXPECT_EQ(apply({{Kind::kPrepend, {}, "_"}}, ""), "");
  EXPECT_EQ(apply({{Kind::kPrepend, {}, "_"}}, "_a"), "__a");
  EXPECT_EQ(apply({{Kind::kPrependOnce, {}, "_"}}, "_a"), "_a");
  EXPECT_EQ(apply({{Kind::kPrependOnce, {}, "_"}}, "a"), "_a");
  const TextChange first{Kind::kPrepend, {}, "_", true};
  EXPECT_EQ(apply({first}, "a", true), "_a");
  EXPECT_EQ(apply({first}, "a", false), "a");
}

TEST(Normaliser, FormsLeaveInvalidBytes) {
  EXPECT_EQ(apply({{Kind::kNfc}},
                  "\xFF"
                  "e\xCC\x81\xE2\x82"),
            "\xFF\xC3\xA9\xE2\x82");
  EXPECT_EQ(apply({{Kind::kNfkc}}, "\xEF\xAC\x81\xC2\xB2"), "fi2");
}

TEST(Normaliser, CollapsesSpaces) {
  EXPECT_EQ(apply({{Kind::kCollapseSpaces}}, "  a  b \n c "), "a b \n c");
  EXPECT_EQ(apply({{Kind::kCollapseSpaces}}, "   "), "");
}

}  // namespace
}  // namespace kivi
