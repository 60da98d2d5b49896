#include "text/pretokenizer.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "text/normaliser.h"
#include "text/presets.h"

namespace kivi {
namespace {

using Pieces = std::vector<std::string>;

Pieces split(std::string_view pre, std::string_view text) {
  TokenizerSpec spec;
  set_pretokeniser(spec, pre);
  std::string normalised;
  const auto pieces = Pretokenizer(spec.cuts).split(Normaliser(spec.normaliser).apply(text, true, normalised));
  return {pieces.begin(), pieces.end()};
}

TEST(Pretokenizer, Gpt2) {
  EXPECT_EQ(split("gpt-2", "I'm  2024's\n\nbest!?  "),
            (Pieces{"I", "'m", " ", " 2024", "'s", "\n", "\n", "best", "!?", "  "}));
  EXPECT_EQ(split("gpt-2", "IT'S"), (Pieces{"IT", "'", "S"}));
  EXPECT_EQ(split("no such name", "a 12"), split("gpt-2", "a 12"));
}

TEST(Pretokenizer, SmollmCutsDigitsFirst) {
  EXPECT_EQ(split("smollm", "a  12b 3"), (Pieces{"a", "  ", "1", "2", "b", " ", "3"}));
  EXPECT_EQ(split("smollm", "a  b\xC2\xBD"), (Pieces{"a", " ", " b", "\xC2\xBD"}));
}

TEST(Pretokenizer, Qwen2) {
  EXPECT_EQ(split("qwen2", "It'S 12\r\n\r\n  x=(y)\n"),
            (Pieces{"It", "'S", " ", "1", "2", "\r\n\r\n", " ", " x", "=(", "y", ")\n"}));
  EXPECT_EQ(split("qwen2", "e\xCC\x81"), (Pieces{"\xC3\xA9"}));
  EXPECT_EQ(split("qwen2", "'\xC5\xBF"), (Pieces{"'\xC5\xBF"}));  // the long s is an s
}

TEST(Pretokenizer, LlamaBpe) {
  EXPECT_EQ(split("llama-bpe", "12345 (it)"), (Pieces{"123", "45", " (", "it", ")"}));
  EXPECT_EQ(split("llama-bpe", "e\xCC\x81"), (Pieces{"e", "\xCC\x81"}));
}

TEST(Pretokenizer, Falcon) {
  EXPECT_EQ(split("falcon", "a,, 12345b (c)"), (Pieces{"a", ",,", " ", "123", "45", "b", " ", "(", "c", ")"}));
  // The symbol of the byte B2 is a digit.
  EXPECT_EQ(split("falcon", "x\xC2\xB2"), (Pieces{"x", "\xC2", "\xB2"}));
}

Pieces cut(TextCut options, std::string_view text) {
  const auto pieces = Pretokenizer({std::move(options)}).split(text);
  return {pieces.begin(), pieces.end()};
}

TEST(Pretokenizer, MatchesGoWhereTheyBelong) {
  using Matches = TextCut::Matches;
  EXPECT_EQ(cut({"-", Matches::kIsolated}, "a--b-"), (Pieces{"a", "-", "-", "b", "-"}));
  EXPECT_EQ(cut({"-", Matches::kRemoved}, "a--b-"), (Pieces{"a", "b"}));
  EXPECT_EQ(cut({"-", Matches::kContiguous}, "a--b-"), (Pieces{"a", "--", "b", "-"}));
  EXPECT_EQ(cut({"-", Matches::kWithPrevious}, "-a--b-"), (Pieces{"-", "a-", "-", "b-"}));
  EXPECT_EQ(cut({"-", Matches::kWithNext}, "-a--b-"), (Pieces{"-a", "-", "-b", "-"}));
  EXPECT_EQ(cut({"[a-z]", Matches::kRemoved, true}, "a--b-"), (Pieces{"a", "b"}));
}

TEST(Pretokenizer, SpaceIsUnicodeWhiteSpace) {
  // U+0085 and U+3000 are white space; U+180E and U+200B are not.
  EXPECT_EQ(split("gpt-2", "a\xC2\x85\xE3\x80\x80"), (Pieces{"a", "\xC2\x85\xE3\x80\x80"}));
  EXPECT_EQ(split("gpt-2", "!\xE1\xA0\x8E\xE2\x80\x8B"), (Pieces{"!\xE1\xA0\x8E\xE2\x80\x8B"}));
}

TEST(Pretokenizer, InvalidBytesStandAlone) {
  EXPECT_EQ(split("smollm",
                  "a\xFF\xE2\x82"
                  "b\xF0"),
            (Pieces{"a", "\xFF", "\xE2", "\x82", "b", "\xF0"}));
}

}  // namespace
}  // namespace kivi
