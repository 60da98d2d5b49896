#include "server/stop_matcher.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>

namespace kivi {
namespace {

using Texts = std::vector<std::string>;

Texts feed(StopMatcher matcher, const Texts& pieces) {
  Texts shown;
  for (const std::string& piece : pieces) shown.push_back(matcher.add(piece));
  shown.push_back(matcher.finish());
  return shown;
}

TEST(StopMatcher, HoldsBackWhatMayBecomeAStop) {
  EXPECT_EQ(feed(StopMatcher({"END"}), {"abE", "N", "x", "E", "ND", "more"}), (Texts{"ab", "", "ENx", "", "", "", ""}));
  EXPECT_EQ(feed(StopMatcher({"END"}), {"aEN"}), (Texts{"a", "EN"}));
  EXPECT_EQ(feed(StopMatcher({}), {"a", "b"}), (Texts{"a", "b", ""}));
}

TEST(StopMatcher, TheFirstThatIsWholeEndsTheText) {
  EXPECT_EQ(feed(StopMatcher({"cd", "b"}), {"abcd"}), (Texts{"a", ""}));
  EXPECT_EQ(feed(StopMatcher({"b", "ab"}, true), {"abcd"}), (Texts{"ab", ""}));
  EXPECT_EQ(feed(StopMatcher({"b", "ab"}), {"cabd"}), (Texts{"c", ""}));
  // "aab" is found though the first "a" began another try.
  EXPECT_EQ(feed(StopMatcher({"aab"}), {"a", "a", "a", "b"}), (Texts{"", "", "a", "", ""}));
}

TEST(StopMatcher, IncludesTheStopIfAsked) {
  EXPECT_EQ(feed(StopMatcher({"END"}, true), {"abE", "ND!"}), (Texts{"ab", "END", ""}));
}

// However the text is cut, what is shown is what a search of the whole text says.
TEST(StopMatcher, DoesNotDependOnWhereTextIsCut) {
  std::mt19937 random(5);
  const auto some_text = [&random](size_t n) {
    std::string text(n, ' ');
    for (char& c : text) c = static_cast<char>('a' + random() % 2);
    return text;
  };
  for (int round = 0; round < 2000; ++round) {
    const std::string text = some_text(random() % 30);
    const Texts stops = {some_text(1 + random() % 5), some_text(1 + random() % 5)};
    StopMatcher matcher(stops);
    std::string shown;
    for (size_t at = 0; at < text.size();) {
      const size_t n = 1 + random() % 4;
      shown += matcher.add(text.substr(at, n));
      at += n;
    }
    const bool found = matcher.matched();
    shown += matcher.finish();
    size_t end = 0;  // of the shortest text that ends with a stop
    const auto ends_with = [&](const std::string& stop) { return text.substr(0, end).ends_with(stop); };
    while (end <= text.size() && !ends_with(stops[0]) && !ends_with(stops[1])) ++end;
    ASSERT_EQ(found, end <= text.size());
    size_t begin = text.size();
    for (const std::string& stop : stops) {
      if (found && ends_with(stop)) begin = std::min(begin, end - stop.size());
    }
    EXPECT_EQ(shown, text.substr(0, begin)) << text << " " << stops[0] << " " << stops[1];
  }
}

}  // namespace
}  // namespace kivi
