#include "text/byte_pair.h"

#include <gtest/gtest.h>

#include <map>
#include <random>

#include "core/error.h"
#include "text/presets.h"
#include "text/tokenizer.h"

namespace kivi {
namespace {

using Rules = std::vector<std::string>;
using Types = std::vector<TokenizerSpec::TokenType>;

TokenizerSpec spec_of(std::vector<std::string> tokens, Types types = {}) {
  TokenizerSpec spec;
  spec.tokens = std::move(tokens);
  spec.types = std::move(types);
  return spec;
}

// Owns its spec's lists.
struct TestVocabulary : Vocabulary {
  explicit TestVocabulary(TokenizerSpec spec) : Vocabulary(spec) {}
};

std::vector<TokenizerSpec::Merge> parse(const Rules& rules) {
  std::vector<TokenizerSpec::Merge> merges;
  for (const std::string& rule : rules) merges.push_back(parse_merge(rule).value());
  return merges;
}

std::vector<TokenId> merge(const Vocabulary& vocabulary, const Rules& rules, std::string_view text) {
  std::vector<TokenId> symbols, merged;
  for (const char byte : text) symbols.push_back(vocabulary.byte_id(static_cast<uint8_t>(byte)));
  const MergeRules merge_rules(vocabulary, parse(rules));
  BytePairMerger(merge_rules).append_merged(symbols, merged);
  return merged;
}

// The definition, step by step: of all neighbours, the leftmost pair of the best rank becomes one.
std::vector<std::string> merge_slowly(const Rules& rules, std::string_view text) {
  std::map<std::string, size_t> rank;
  for (size_t i = 0; i < rules.size(); ++i) rank.emplace(rules[i], i);
  std::vector<std::string> parts;
  for (const char c : text) parts.emplace_back(1, c);
  for (;;) {
    size_t best = rules.size(), at = 0;
    for (size_t i = 0; i + 1 < parts.size(); ++i) {
      const auto it = rank.find(parts[i] + " " + parts[i + 1]);
      if (it != rank.end() && it->second < best) best = it->second, at = i;
    }
    if (best == rules.size()) return parts;
    parts[at] += parts[at + 1];
    parts.erase(parts.begin() + static_cast<std::ptrdiff_t>(at) + 1);
  }
}

TEST(BytePair, FollowsTheDefinitionOnRandomRules) {
  std::mt19937 random(11);
  for (int round = 0; round < 200; ++round) {
    std::vector<std::string> tokens = {"a", "b", "c"};
    Rules rules;
    while (rules.size() < 25) {
      const std::string left = tokens[random() % tokens.size()], right = tokens[random() % tokens.size()];
      if (left.size() + right.size() > 8) continue;
      rules.push_back(left + " " + right);
      tokens.push_back(left + right);
    }
    const TestVocabulary vocabulary(spec_of(tokens));
    for (size_t size : {0, 1, 2, 3, 8, 40}) {
      std::string text;
      while (text.size() < size) text += "abc"[random() % 3];
      std::vector<std::string> parts;
      for (const TokenId id : merge(vocabulary, rules, text)) parts.emplace_back(vocabulary.token(id));
      ASSERT_EQ(parts, merge_slowly(rules, text)) << text;
    }
  }
}

TEST(BytePair, AMegabyteWithoutABreakIsNotQuadratic) {
  const TestVocabulary vocabulary(spec_of({"a", "b", "ab", "ba", "abab"}));
  std::string text;
  for (int i = 0; i < 500'000; ++i) text += "ab";
  const std::vector<TokenId> ids = merge(vocabulary, {"b a", "a b", "ab ab"}, text);
  EXPECT_EQ(ids.size(), 500'001u);  // a, ba ..., b
}

TEST(BytePair, PlainTextNeverBecomesAControlToken) {
  using enum TokenizerSpec::TokenType;
  const TestVocabulary vocabulary(spec_of({"a", "b", "ab"}, {kNormal, kNormal, kControl}));
  EXPECT_EQ(merge(vocabulary, {"a b"}, "ab"), (std::vector<TokenId>{0, 1}));
}

TEST(BytePair, RefusesBrokenRules) {
  for (const char* line : {"", " ", "a", "a ", " a"}) EXPECT_EQ(parse_merge(line), std::nullopt) << line;
  const TestVocabulary vocabulary(spec_of({"a", "b", "ab"}));
  for (const char* rule : {"a c", "c a", "b a", "a  b", "a b b"}) {
    try {
      MergeRules(vocabulary, parse({rule}));
      ADD_FAILURE() << "accepted '" << rule << "'";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kCorrupt) << rule;
    }
  }
}

TokenizerSpec spec_of_text(std::vector<std::string> tokens, std::vector<float> scores) {
  TokenizerSpec spec = spec_of(std::move(tokens));
  spec.scores = std::move(scores);
  set_sentencepiece(spec, false);
  return spec;
}

// SentencePiece's definition: of all neighbours that spell a token, the leftmost of the best score becomes one.
std::vector<std::string> merge_slowly_by_score(const std::map<std::string, float>& scores, std::string_view text) {
  std::vector<std::string> parts;
  for (const char c : text) parts.emplace_back(1, c);
  for (;;) {
    const std::string* best = nullptr;
    size_t at = 0;
    for (size_t i = 0; i + 1 < parts.size(); ++i) {
      const auto it = scores.find(parts[i] + parts[i + 1]);
      if (it != scores.end() && (best == nullptr || it->second > scores.at(*best))) best = &it->first, at = i;
    }
    if (best == nullptr) return parts;
    parts[at] = *best;
    parts.erase(parts.begin() + static_cast<std::ptrdiff_t>(at) + 1);
  }
}

TEST(BytePair, ScoresFollowTheDefinitionOnRandomVocabularies) {
  std::mt19937 random(12);
  for (int round = 0; round < 100; ++round) {
    std::map<std::string, float> scores = {{"a", 0}, {"b", 0}, {"c", 0}};
    while (scores.size() < 25) {
      const auto part = [&] { return std::next(scores.begin(), static_cast<int>(random() % scores.size()))->first; };
      const std::string token = part() + part();
      if (token.size() <= 6) scores.emplace(token, -static_cast<float>(random() % 8));  // some are equal
    }
    std::vector<std::string> tokens;
    std::vector<float> by_id;
    for (const auto& [token, score] : scores) tokens.push_back(token), by_id.push_back(score);
    const auto tokenizer = make_tokenizer(spec_of_text(tokens, by_id));
    for (size_t size : {0, 1, 2, 3, 8, 40}) {
      std::string text;
      while (text.size() < size) text += "abc"[random() % 3];
      std::vector<std::string> parts;
      for (const TokenId id : tokenizer->encode(text, false, false)) parts.push_back(tokens[static_cast<size_t>(id)]);
      ASSERT_EQ(parts, merge_slowly_by_score(scores, text)) << text;
    }
  }
}

}  // namespace
}  // namespace kivi
