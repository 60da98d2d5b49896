#include "text/detokenizer.h"

#include <gtest/gtest.h>

#include <random>

#include "text/golden_text.h"
#include "text/presets.h"
#include "text/unicode.h"

namespace kivi {
namespace {

// Feeds `bytes` one token per byte; gives what each token completed, and what was left.
std::vector<std::string> stream(std::string_view bytes) {
  static const auto tokenizer = make_tokenizer([] {
    TokenizerSpec spec = golden::tiny_spec("smollm");
    spec.merges.clear();
    return spec;
  }());
  StreamDetokenizer detokenizer(*tokenizer);
  std::vector<std::string> texts;
  for (const TokenId id : tokenizer->encode(bytes, false, false)) texts.push_back(detokenizer.add(id));
  texts.push_back(detokenizer.finish());
  EXPECT_EQ(detokenizer.finish(), "");
  return texts;
}

using Texts = std::vector<std::string>;
const std::string kLost = "\xEF\xBF\xBD";

TEST(Detokenizer, HoldsBytesBackUntilACharacterIsWhole) {
  EXPECT_EQ(stream("a\xC3\xA9"), (Texts{"a", "", "\xC3\xA9", ""}));
  EXPECT_EQ(stream("\xF0\x9F\x99\x82!"), (Texts{"", "", "", "\xF0\x9F\x99\x82", "!", ""}));
}

TEST(Detokenizer, InvalidBytesAreReplacedOnce) {
  EXPECT_EQ(stream("\xFF"), (Texts{kLost, ""}));
  EXPECT_EQ(stream("\xE2\x82"
                   "b"),
            (Texts{"", "", kLost + "b", ""}));
  EXPECT_EQ(stream("\xE2\x82"), (Texts{"", "", kLost}));
  EXPECT_EQ(stream("\xE2\xF0\x9F\x99\x82"), (Texts{"", kLost, "", "", "\xF0\x9F\x99\x82", ""}));
}

TEST(Detokenizer, ControlTokensShowNothing) {
  const auto tokenizer = make_tokenizer(golden::tiny_spec("smollm"));
  StreamDetokenizer detokenizer(*tokenizer);
  EXPECT_EQ(detokenizer.add(*tokenizer->find("<|im_end|>")), "");
}

// SentencePiece: the space in front of the first token is not of the text, and is dropped once.
TEST(Detokenizer, TheFirstSpaceOfSentencePieceIsNotShown) {
  TokenizerSpec spec;
  spec.tokens = {"<s>",
                 "\xE2\x96\x81",
                 "\xE2\x96\x81"
                 "a",
                 "b",
                 "<0xC3>",
                 "<0xA9>"};
  using enum TokenizerSpec::TokenType;
  spec.types = {kControl, kNormal, kNormal, kNormal, kByte, kByte};
  spec.scores.resize(spec.tokens.size());
  set_sentencepiece(spec, true);
  const auto tokenizer = make_tokenizer(spec);
  const auto texts_of = [&](const std::vector<TokenId>& ids) {
    StreamDetokenizer detokenizer(*tokenizer);
    Texts texts;
    for (const TokenId id : ids) texts.push_back(detokenizer.add(id));
    return texts;
  };
  EXPECT_EQ(texts_of({0, 2, 2}), (Texts{"", "a", " a"}));
  EXPECT_EQ(texts_of({1, 1, 3}), (Texts{"", " ", "b"}));
  EXPECT_EQ(texts_of({3, 2}), (Texts{"b", " a"}));
  EXPECT_EQ(texts_of({1, 4, 5}), (Texts{"", "", "\xC3\xA9"}));
  EXPECT_EQ(tokenizer->decode(std::vector<TokenId>{1, 1, 3}), " b");
}

TEST(Detokenizer, EveryOutputIsValidUtf8) {
  std::mt19937 random(13);
  for (int round = 0; round < 300; ++round) {
    std::string bytes(random() % 40, ' ');
    for (char& byte : bytes) byte = static_cast<char>(0x70 + random() % 0x90);
    for (const std::string& text : stream(bytes)) ASSERT_EQ(valid_utf8_prefix(text), text.size());
  }
}

}  // namespace
}  // namespace kivi
