#include "text/regex.h"

#include <gtest/gtest.h>

#include <vector>

#include "core/error.h"

namespace kivi {
namespace {

using Matches = std::vector<std::string>;

Matches matches(std::string_view pattern, std::string_view text, bool is_bytes = false) {
  Matches found;
  const Regex regex(pattern, is_bytes);
  RegexMatcher(regex).for_each_match(
      text, [&](size_t begin, size_t end) { found.emplace_back(text.substr(begin, end - begin)); });
  return found;
}

TEST(Regex, EscapesAreThoseOfOniguruma) {
  EXPECT_EQ(matches(R"(\s+)", "a \xE3\x80\x80z\xE1\xA0\x8E"), (Matches{" \xE3\x80\x80"}));  // not U+180E
  EXPECT_EQ(matches(R"([^\s]+)", "ab c"), (Matches{"ab", "c"}));
  EXPECT_EQ(matches(R"(\S+)", "ab c"), (Matches{"ab", "c"}));
  EXPECT_EQ(matches(R"(\h+)", "x1F z"), (Matches{"1F"}));
  EXPECT_EQ(matches(R"(\u00e9|\x{41})",
                    "\xC3\xA9"
                    "A"),
            (Matches{"\xC3\xA9", "A"}));
  EXPECT_EQ(matches(R"([\]\[x]+|[]y]+)", "[x]y]"), (Matches{"[x]", "y]"}));
  EXPECT_EQ(matches(R"(\p{Lu}\p{Ll}*)", "aBcD"), (Matches{"Bc", "D"}));
  EXPECT_EQ(matches(R"(\p{N}{2})", "12345"), (Matches{"12", "34"}));
}

TEST(Regex, EmptyMatchesAreNone) {
  EXPECT_EQ(matches("a*", "baab"), (Matches{"aa"}));
  EXPECT_EQ(matches("", "ab"), Matches{});
}

TEST(Regex, BytesAreNotCharacters) {
  EXPECT_EQ(matches(R"([\xB2-\xB9])", "\xC2\xB2", true), (Matches{"\xB2"}));
}

TEST(Regex, LiteralsMatchThemselves) {
  for (const char* text : {".", "a+(b)", "\\E\xE2\x96\x81 #\n", "[x]"}) {
    EXPECT_EQ(matches(literal_pattern(text), text), (Matches{text}));
  }
}

TEST(Regex, RefusesWhatItCannotRun) {
  for (const char* pattern :
       {"(", "[a", "[a&&b]", "[a[b]]", R"(\p{N}{1,3}+)", R"([^\S])", R"(\u12)", R"(\p{Nothing})", "\\"}) {
    try {
      Regex(pattern, false);
      ADD_FAILURE() << "accepted " << pattern;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kUnsupported) << pattern;
      EXPECT_EQ(std::string_view(error.what()).find('\n'), std::string_view::npos);
    }
  }
  EXPECT_THROW(matches("(x+x+)+[yz]", std::string(100, 'x')), Error);  // exponentially many ways
}

}  // namespace
}  // namespace kivi
