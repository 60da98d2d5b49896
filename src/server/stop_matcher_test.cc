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

TEST(StopMatcher, TheFirstOfSeveralEndsTheText) {
  EXPECT_EQ(feed(StopMatcher({"cd", "b"}), {"abcd"}), (Texts{"a", ""}));
  EXPECT_EQ(feed(StopMatcher({"b", "bc"}, true), {"abcd"}), (Texts{"abc", ""}));
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
    const size_t first = std::min(text.find(stops[0]), text.find(stops[1]));
    EXPECT_EQ(found, first != std::string::npos);
    EXPECT_EQ(shown, text.substr(0, first)) << text << " " << stops[0] << " " << stops[1];
  }
}

}  // namespace
}  // namespace kivi
