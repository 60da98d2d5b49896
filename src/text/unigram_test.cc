#include "text/unigram.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>

#include "core/error.h"

namespace kivi {
namespace {

using TokenType = TokenizerSpec::TokenType;

struct TestVocabulary : Vocabulary {
  explicit TestVocabulary(TokenizerSpec spec) : Vocabulary(spec) {}
};

TokenizerSpec spec_of(std::vector<std::string> tokens, std::vector<TokenType> types = {}) {
  TokenizerSpec spec;
  spec.spelling = TokenizerSpec::Spelling::kText;
  spec.tokens = std::move(tokens);
  spec.types = std::move(types);
  return spec;
}

std::vector<TokenId> best(const Vocabulary& vocabulary, std::vector<float> scores, std::string_view text) {
  std::vector<TokenId> ids;
  Unigram(vocabulary, std::move(scores)).append_best(text, ids);
  return ids;
}

// The definition: of all ways to spell the text, the greatest sum.
float best_sum(const std::vector<std::string>& tokens, const std::vector<float>& scores, std::string_view text) {
  if (text.empty()) return 0;
  float most = -std::numeric_limits<float>::infinity();
  for (size_t id = 0; id < tokens.size(); ++id) {
    if (!text.starts_with(tokens[id])) continue;
    most = std::max(most, scores[id] + best_sum(tokens, scores, text.substr(tokens[id].size())));
  }
  return most;
}

TEST(Unigram, FindsTheBestSumOnRandomVocabularies) {
  std::mt19937 random(21);
  for (int round = 0; round < 50; ++round) {
    std::vector<std::string> tokens = {"a", "b", "c"};
    while (tokens.size() < 15) {
      const std::string token = tokens[random() % tokens.size()] + tokens[random() % 3];
      if (std::find(tokens.begin(), tokens.end(), token) == tokens.end()) tokens.push_back(token);
    }
    std::vector<float> scores;
    for (size_t i = 0; i < tokens.size(); ++i) scores.push_back(-static_cast<float>(random() % 64) / 4);
    const TestVocabulary vocabulary(spec_of(tokens));
    std::string text;
    while (text.size() < 10) text += "abc"[random() % 3];
    std::string spelled;
    float sum = 0;
    for (const TokenId id : best(vocabulary, scores, text)) {
      spelled += tokens[static_cast<size_t>(id)];
      sum += scores[static_cast<size_t>(id)];
    }
    EXPECT_EQ(spelled, text);
    EXPECT_EQ(sum, best_sum(tokens, scores, text));
  }
}

TEST(Unigram, UnknownCharactersAreOneUnknownTokenOrBytes) {
  TokenizerSpec spec = spec_of({"<unk>", "a"}, {TokenType::kUnknown, TokenType::kNormal});
  spec.unknown = 0;
  EXPECT_EQ(best(TestVocabulary(spec), {0, -1}, "a\xC3\xA9!a"), (std::vector<TokenId>{1, 0, 1}));
  const TestVocabulary bytes(
      spec_of({"<0xC3>", "<0xA9>", "a"}, {TokenType::kByte, TokenType::kByte, TokenType::kNormal}));
  EXPECT_EQ(best(bytes, {0, 0, -1}, "a\xC3\xA9!"), (std::vector<TokenId>{2, 0, 1}));  // no token for "!"
}

TEST(Unigram, UserDefinedTokensWin) {
  const TestVocabulary vocabulary(
      spec_of({"a", "b", "ab"}, {TokenType::kNormal, TokenType::kNormal, TokenType::kUserDefined}));
  EXPECT_EQ(best(vocabulary, {-0.5F, -0.5F, -100}, "abab"), (std::vector<TokenId>{2, 2}));
}

TEST(Unigram, RefusesBrokenScores) {
  const TestVocabulary vocabulary(spec_of({"a", "b"}));
  EXPECT_THROW(Unigram(vocabulary, {0}), Error);
  EXPECT_THROW(Unigram(vocabulary, {0, std::nanf("")}), Error);
}

}  // namespace
}  // namespace kivi
