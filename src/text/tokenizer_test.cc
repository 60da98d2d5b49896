#include "text/tokenizer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <thread>

#include "core/error.h"
#include "text/byte_alphabet.h"
#include "text/golden_text.h"

namespace kivi {
namespace {

using Ids = std::vector<TokenId>;
using TokenType = TokenizerSpec::TokenType;

constexpr const char* kPreTokenisers[] = {"smollm", "qwen2", "llama-bpe", "gpt-2"};

std::string random_bytes(std::mt19937& random, size_t most) {
  std::string bytes(random() % (most + 1), ' ');
  for (char& byte : bytes) byte = static_cast<char>(random());
  return bytes;
}

TEST(Tokenizer, EverySymbolIsItsByte) {
  for (int byte = 0; byte < 256; ++byte) {
    EXPECT_EQ(symbols_to_bytes(byte_symbol(static_cast<uint8_t>(byte))), std::string(1, static_cast<char>(byte)));
  }
  EXPECT_EQ(byte_symbol(' '), "\xC4\xA0");
  EXPECT_EQ(symbols_to_bytes("a b"), "a b");              // a space is no symbol
  EXPECT_EQ(symbols_to_bytes("a\xC5\x84"), "a\xC5\x84");  // U+0144: one past the last symbol
}

TEST(Tokenizer, GivesAnyBytesBack) {
  std::mt19937 random(3);
  for (const char* pre : {"smollm", "llama-bpe", "gpt-2"}) {
    const auto tokenizer = make_tokenizer(golden::tiny_spec(pre));
    for (int round = 0; round < 500; ++round) {
      const std::string bytes = random_bytes(random, 100);
      ASSERT_EQ(tokenizer->decode(tokenizer->encode(bytes, false, true), true), bytes) << testing::PrintToString(bytes);
    }
  }
}

TEST(Tokenizer, NfcChangesValidTextOnly) {
  const auto tokenizer = make_tokenizer(golden::tiny_spec("qwen2"));
  EXPECT_EQ(tokenizer->decode(tokenizer->encode("e\xCC\x81\xFF\xCC", false, false)), "\xC3\xA9\xFF\xCC");
}

TEST(Tokenizer, ControlTokensNeedParseSpecial) {
  const auto tokenizer = make_tokenizer(golden::tiny_spec("smollm"));
  const TokenId start = *tokenizer->find("<|im_start|>"), end = *tokenizer->find("<|im_end|>");
  EXPECT_EQ(tokenizer->encode("<|im_start|><|im_end|>", false, true), (Ids{start, end}));
  for (const TokenId id : tokenizer->encode("<|im_start|><|im_end|>", false, false))
    EXPECT_FALSE(id == start || id == end);
  EXPECT_EQ(tokenizer->decode(Ids{start, TokenId{'A'}, end}), "A");
  EXPECT_EQ(tokenizer->decode(Ids{start, end}, true), "<|im_start|><|im_end|>");
}

TEST(Tokenizer, LongestSpecialTokenWins) {
  const auto tokenizer = make_tokenizer(golden::tiny_spec("smollm"));
  const TokenId both = *tokenizer->find("<|im_end|><|im_start|>");
  EXPECT_EQ(tokenizer->encode("<|im_end|><|im_start|>", false, true), (Ids{both}));
  EXPECT_EQ(tokenizer->encode("<|im_end|><|im_", false, true).front(), *tokenizer->find("<|im_end|>"));
  EXPECT_EQ(tokenizer->encode("<tool_call>x", false, false), (Ids{*tokenizer->find("<tool_call>x")}));
}

TEST(Tokenizer, UserDefinedTokensAreTextAndAlwaysParsed) {
  const auto tokenizer = make_tokenizer(golden::tiny_spec("qwen2"));
  const Ids ids = tokenizer->encode("<tool_call>", false, false);
  EXPECT_EQ(ids, (Ids{*tokenizer->find("<tool_call>")}));
  EXPECT_EQ(tokenizer->decode(ids), "<tool_call>");
}

TEST(Tokenizer, TurnTokensAreControlTokensWhateverTheFileSays) {
  TokenizerSpec spec = golden::tiny_spec("smollm");
  std::replace(spec.types.begin(), spec.types.end(), TokenType::kControl, TokenType::kUserDefined);
  const auto tokenizer = make_tokenizer(spec);
  EXPECT_GT(tokenizer->encode("<|im_end|>", false, false).size(), 1u);
  EXPECT_EQ(tokenizer->encode("<|im_end|>", false, true), (Ids{*tokenizer->find("<|im_end|>")}));
}

TEST(Tokenizer, KnownPiecesAreKeptForLlamaAlone) {
  for (const char* pre : kPreTokenisers) {
    const auto tokenizer = make_tokenizer(golden::tiny_spec(pre));
    const bool is_kept =
        tokenizer->encode(" unreachable", false, false) == Ids{*tokenizer->find("\xC4\xA0unreachable")};
    EXPECT_EQ(is_kept, std::string_view(pre) == "llama-bpe") << pre;
  }
}

TEST(Tokenizer, BosGoesFirstIfTheModelWantsOne) {
  TokenizerSpec spec = golden::tiny_spec("smollm");
  spec.bos = static_cast<TokenId>(spec.tokens.size()) - 1;
  EXPECT_EQ(make_tokenizer(spec)->encode("", true, false), Ids{});
  EXPECT_EQ(make_tokenizer(spec)->begin_of_text(), std::nullopt);
  spec.add_bos = true;
  const auto tokenizer = make_tokenizer(spec);
  EXPECT_EQ(tokenizer->encode("", true, false), (Ids{*spec.bos}));
  EXPECT_EQ(tokenizer->encode("", false, false), Ids{});
  EXPECT_EQ(tokenizer->begin_of_text(), spec.bos);
}

TEST(Tokenizer, EndIdsAreEosAndEndTokens) {
  TokenizerSpec spec = golden::tiny_spec("smollm");
  spec.tokens.push_back("</s>");  // a normal token that looks like one
  spec.types.push_back(TokenType::kNormal);
  const auto without_eos = make_tokenizer(spec);
  const TokenId im_end = *without_eos->find("<|im_end|>"), end_of_text = *without_eos->find("<|endoftext|>");
  EXPECT_EQ(without_eos->end_ids(), (Ids{im_end, end_of_text}));
  spec.eos = end_of_text;
  EXPECT_EQ(make_tokenizer(spec)->end_ids(), (Ids{end_of_text, im_end}));
}

TEST(Tokenizer, BytesWithoutATokenAreDropped) {
  TokenizerSpec spec;
  spec.tokens = {"a", "b", "ab"};
  spec.merges = {{"a", "b"}};
  EXPECT_EQ(make_tokenizer(spec)->encode("axb", false, false), (Ids{2}));  // as the package tokenizers does
}

TEST(Tokenizer, ThreadsShareOne) {
  const TokenizerSpec spec = golden::tiny_spec("qwen2");
  const auto tokenizer = make_tokenizer(spec);
  const std::string text = golden::TextMaker(spec).chunk(1000);
  const Ids expected = tokenizer->encode(text, false, true);
  std::vector<Ids> results(4);
  std::vector<std::thread> threads;
  for (Ids& result : results) {
    threads.emplace_back([&] {
      for (int i = 0; i < 20; ++i) result = tokenizer->encode(text, false, true);
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const Ids& result : results) EXPECT_EQ(result, expected);
}

TEST(Tokenizer, RefusesIdsBeyondTheVocabulary) {
  const auto tokenizer = make_tokenizer(golden::tiny_spec("smollm"));
  EXPECT_THROW(tokenizer->token_bytes(-1), Error);
  EXPECT_THROW(tokenizer->token_bytes(tokenizer->vocab_size()), Error);
  EXPECT_FALSE(tokenizer->find("no such token").has_value());
}

void expect_refused(const char* what, ErrorCode code, const std::function<void(TokenizerSpec&)>& damage) {
  TokenizerSpec spec = golden::tiny_spec("smollm");
  damage(spec);
  try {
    make_tokenizer(spec);
    ADD_FAILURE() << "accepted: " << what;
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), code) << what << ": " << error.what();
    EXPECT_EQ(std::string_view(error.what()).find('\n'), std::string_view::npos) << what;
  }
}

TEST(Tokenizer, RefusesBrokenVocabularies) {
  const auto expect_corrupt = [](const char* what, const std::function<void(TokenizerSpec&)>& damage) {
    expect_refused(what, ErrorCode::kCorrupt, damage);
  };
  expect_corrupt("no tokens",
                 [](TokenizerSpec& spec) { spec.tokens.clear(), spec.types.clear(), spec.merges.clear(); });
  expect_corrupt("an empty token", [](TokenizerSpec& spec) { spec.tokens[300].clear(); });
  expect_corrupt("too few types", [](TokenizerSpec& spec) { spec.types.pop_back(); });
  expect_corrupt("no bytes",
                 [](TokenizerSpec& spec) { spec.tokens = {"ab"}, spec.types.clear(), spec.merges.clear(); });
  expect_corrupt("an unknown merge", [](TokenizerSpec& spec) { spec.merges.emplace_back("qqq", "a"); });
  expect_corrupt("bos below 0", [](TokenizerSpec& spec) { spec.bos = -1; });
  expect_corrupt("eos beyond", [](TokenizerSpec& spec) { spec.eos = static_cast<TokenId>(spec.tokens.size()); });
  expect_corrupt("pad beyond", [](TokenizerSpec& spec) { spec.pad = static_cast<TokenId>(spec.tokens.size()); });
  expect_corrupt("an end beyond", [](TokenizerSpec& spec) { spec.ends = {-1}; });
  expect_corrupt("scores for others", [](TokenizerSpec& spec) { spec.algorithm = TokenizerSpec::Algorithm::kScores; });
  expect_refused("a broken pattern", ErrorCode::kUnsupported, [](TokenizerSpec& spec) { spec.cuts = {{"(a"}}; });
}

}  // namespace
}  // namespace kivi
