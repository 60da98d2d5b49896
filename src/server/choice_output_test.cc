#include "server/choice_output.h"

#include <gtest/gtest.h>

#include "server/letter_tokenizer.h"

namespace kivi {
namespace {

const LetterTokenizer kTokenizer;

Event token(TokenId id) {
  Event event;
  event.token = id;
  event.score = ScoredToken{.token = {id, -0.5F}};
  return event;
}

Event end(FinishReason reason, std::optional<TokenId> stop_id = {}) {
  Event event;
  event.finish = Finish{.reason = reason, .stop_id = stop_id};
  if (stop_id) event.score = ScoredToken{.token = {*stop_id, -0.25F}};
  return event;
}

struct Seen {
  std::string text;
  std::vector<TokenId> ids;
  std::vector<int64_t> offsets;
};

Seen feed(ChoiceOutput& output, std::vector<Event> events) {
  Seen seen;
  for (Event& event : events) {
    const OutputDelta delta = output.add(std::move(event));
    seen.text += delta.text;
    for (const OutputToken& one : delta.tokens) {
      seen.ids.push_back(one.id);
      seen.offsets.push_back(one.text_offset);
    }
  }
  return seen;
}

TEST(ChoiceOutput, NeverSplitsACharacter) {
  ChoiceOutput output(kTokenizer, {1}, {});
  EXPECT_EQ(output.add(token(28)).text, "");
  EXPECT_EQ(output.add(token(29)).text, "");
  EXPECT_EQ(output.add(token(30)).text, "\xE2\x82\xAC");
  EXPECT_EQ(output.add(token(28)).text, "");
  EXPECT_EQ(output.add(end(FinishReason::kLength)).text, "\xEF\xBF\xBD");
  EXPECT_EQ(output.finish_reason(), "length");
  EXPECT_EQ(output.n_output(), 4);
}

TEST(ChoiceOutput, AStopStringAcrossTokensLeaksNeitherTextNorTokens) {
  ChoiceOutput output(kTokenizer, {1}, {.stops = {"cd"}, .scores = true});
  const Seen seen = feed(output, {token(1), token(2), token(3), token(4), token(5)});
  EXPECT_EQ(seen.text, "ab");
  EXPECT_EQ(seen.ids, (std::vector<TokenId>{1, 2}));
  EXPECT_TRUE(output.must_cancel());
  EXPECT_EQ(output.finish_reason(), "stop");
  EXPECT_EQ(output.n_output(), 4);  // what was made until then
}

TEST(ChoiceOutput, HeldTokensComeWithTheirText) {
  ChoiceOutput output(kTokenizer, {1}, {.stops = {"cd"}, .scores = true});
  EXPECT_TRUE(output.add(token(3)).empty());
  const OutputDelta delta = output.add(token(3));
  EXPECT_EQ(delta.text, "c");
  ASSERT_EQ(delta.tokens.size(), 1U);
  const OutputDelta last = output.add(end(FinishReason::kLength));
  EXPECT_EQ(last.text, "c");
  ASSERT_EQ(last.tokens.size(), 1U);
  EXPECT_EQ(last.tokens[0].text_offset, 1);
}

TEST(ChoiceOutput, MinTokensLetStopStringsPass) {
  ChoiceOutput output(kTokenizer, {1}, {.stops = {"b"}, .min_tokens = 3});
  const Seen seen = feed(output, {token(2), token(2), token(1), token(2)});
  EXPECT_EQ(seen.text, "bba");
  EXPECT_EQ(output.finish_reason(), "stop");
}

TEST(ChoiceOutput, EchoGoesFirstWithItsScores) {
  ChoiceOutput output(kTokenizer, {1, 28, 29, 30, 2}, {.scores = true, .echo = true});
  Event scores;
  for (const TokenId id : {28, 29, 30, 2}) scores.prompt_scores.push_back({.token = {id, -1.0F}});
  EXPECT_TRUE(output.add(std::move(scores)).empty());
  const OutputDelta delta = output.add(token(3));
  EXPECT_EQ(delta.text,
            "a\xE2\x82\xAC"
            "bc");
  ASSERT_EQ(delta.tokens.size(), 6U);
  EXPECT_FALSE(delta.tokens[0].score);
  EXPECT_EQ(delta.tokens[4].score->token.id, 2);
  EXPECT_EQ(delta.tokens[4].text_offset, 2);  // in characters
  EXPECT_EQ(delta.tokens[5].text_offset, 3);
}

TEST(ChoiceOutput, TheStopTokenIsScoredAndCountedButHasNoText) {
  ChoiceOutput output(kTokenizer, {1}, {.skips_special = false, .scores = true});
  const Seen seen = feed(output, {token(1), end(FinishReason::kStop, 0)});
  EXPECT_EQ(seen.text, "a");
  EXPECT_EQ(seen.ids, (std::vector<TokenId>{1, 0}));
  EXPECT_EQ(output.n_output(), 2);
  ChoiceOutput included(kTokenizer, {1}, {.includes_stop = true, .skips_special = false});
  EXPECT_EQ(feed(included, {token(1), end(FinishReason::kStop, 0)}).text, "a<end>");
}

TEST(ChoiceOutput, NothingComesAfterTheEnd) {
  ChoiceOutput output(kTokenizer, {1}, {});
  output.add(end(FinishReason::kCancelled));
  EXPECT_EQ(output.finish_reason(), "abort");
  EXPECT_TRUE(output.add(token(1)).empty());
  EXPECT_EQ(output.n_output(), 0);
}

}  // namespace
}  // namespace kivi
