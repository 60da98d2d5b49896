#include "model/tokenizer_spec.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <string>
#include <vector>

#include "core/error.h"
#include "io/gguf.h"
#include "io/gguf_builder.h"

namespace kivi {
namespace {

using Strings = std::vector<std::string>;
using TokenType = TokenizerSpec::TokenType;

GgufBuilder three_tokens() {
  return GgufBuilder().set("tokenizer.ggml.model", "gpt2").set("tokenizer.ggml.tokens", Strings{"<s>", "a", "b"});
}

TokenizerSpec spec_of(const GgufBuilder& builder) {
  const auto bytes = builder.build();
  return read_tokenizer_spec(read_gguf(std::span(bytes)));
}

void expect_corrupt(const GgufBuilder& builder, const std::string& message) {
  try {
    spec_of(builder);
    FAIL() << "no error; expected: " << message;
  } catch (const Error& error) {
    EXPECT_EQ(error.what(), "memory: " + message);
    EXPECT_EQ(error.code(), ErrorCode::kCorrupt);
  }
}

TEST(TokenizerSpec, ReadsEveryField) {
  const TokenizerSpec spec = spec_of(three_tokens()
                                         .set("tokenizer.ggml.pre", "smollm")
                                         .set("tokenizer.ggml.token_type", std::vector<int32_t>{3, 1, 6})
                                         .set("tokenizer.ggml.merges", Strings{"a b"})
                                         .set("tokenizer.ggml.bos_token_id", uint32_t{0})
                                         .set("tokenizer.ggml.eos_token_id", uint32_t{2})
                                         .set("tokenizer.ggml.padding_token_id", uint32_t{1})
                                         .set("tokenizer.ggml.add_bos_token", true)
                                         .set("tokenizer.chat_template", "{{ messages }}"));
  EXPECT_EQ(spec.algorithm, TokenizerSpec::Algorithm::kMerges);
  EXPECT_EQ(spec.spelling, TokenizerSpec::Spelling::kByteSymbols);
  EXPECT_EQ(spec.cuts.size(), 2U);  // smollm: digits, GPT-2's pattern
  EXPECT_EQ(spec.tokens, Strings({"<s>", "a", "b"}));
  EXPECT_EQ(spec.types, std::vector<TokenType>({TokenType::kControl, TokenType::kNormal, TokenType::kByte}));
  EXPECT_EQ(spec.merges, (std::vector<TokenizerSpec::Merge>{{"a", "b"}}));
  EXPECT_EQ(spec.bos, 0);
  EXPECT_EQ(spec.eos, 2);
  EXPECT_EQ(spec.pad, 1);
  EXPECT_TRUE(spec.add_bos);
  EXPECT_EQ(spec.chat_template, "{{ messages }}");
}

TEST(TokenizerSpec, LeavesEmptyWhatIsMissing) {
  const TokenizerSpec spec = spec_of(three_tokens());
  EXPECT_EQ(spec.cuts.size(), 1U);
  EXPECT_TRUE(spec.types.empty());
  EXPECT_TRUE(spec.merges.empty());
  EXPECT_EQ(spec.bos, std::nullopt);
  EXPECT_FALSE(spec.add_bos);
  EXPECT_EQ(spec.chat_template, "");
  EXPECT_TRUE(spec_of(three_tokens().set("tokenizer.ggml.pre", "llama-bpe")).add_bos);
}

TEST(TokenizerSpec, ChecksListsAndIds) {
  expect_corrupt(GgufBuilder().set("tokenizer.ggml.tokens", Strings{"a"}),
                 "metadata key 'tokenizer.ggml.model' is missing");
  expect_corrupt(GgufBuilder().set("tokenizer.ggml.model", "gpt2"),
                 "tokenizer.ggml.tokens is missing, empty or beyond 2^31 tokens");
  expect_corrupt(three_tokens().set("tokenizer.ggml.token_type", std::vector<int32_t>{1, 1}),
                 "tokenizer.ggml.token_type has 2 entries, must have one for each of 3 tokens");
  expect_corrupt(three_tokens().set("tokenizer.ggml.token_type", std::vector<int32_t>{1, 7, 1}),
                 "tokenizer.ggml.token_type has 7, must be 1 to 6");
  expect_corrupt(three_tokens().set("tokenizer.ggml.eos_token_id", uint32_t{3}),
                 "tokenizer.ggml.eos_token_id is 3, but the vocabulary has 3 tokens");
  expect_corrupt(three_tokens().set("tokenizer.ggml.merges", Strings{"ab"}),
                 "tokenizer.ggml.merges has 'ab', must be two tokens with a space between");
  EXPECT_THROW(spec_of(three_tokens().set("tokenizer.ggml.model", "bert")), Error);
}

GgufBuilder four_pieces(const std::vector<float>& scores = {0, -1, -2, 0}) {
  return GgufBuilder()
      .set("tokenizer.ggml.model", "llama")
      .set("tokenizer.ggml.tokens", Strings{"<unk>", "a", "\xE2\x96\x81", "<0x21>"})
      .set("tokenizer.ggml.scores", scores)
      .set("tokenizer.ggml.token_type", std::vector<int32_t>{2, 1, 1, 6});
}

TEST(TokenizerSpec, ReadsSentencePiece) {
  const TokenizerSpec spec = spec_of(four_pieces().set("tokenizer.ggml.eot_token_id", uint32_t{1}));
  EXPECT_EQ(spec.algorithm, TokenizerSpec::Algorithm::kScores);
  EXPECT_EQ(spec.scores, (std::vector<float>{0, -1, -2, 0}));
  EXPECT_EQ(spec.unknown, 0);
  EXPECT_EQ(spec.ends, std::vector<TokenId>{1});
  EXPECT_TRUE(spec.add_bos);
  const auto encode = [](const TokenizerSpec& s) { return make_tokenizer(s)->encode("a a!?", false, false); };
  EXPECT_EQ(encode(spec), (std::vector<TokenId>{2, 1, 2, 1, 3, 0}));
  EXPECT_EQ(encode(spec_of(four_pieces().set("tokenizer.ggml.add_space_prefix", false))),
            (std::vector<TokenId>{1, 2, 1, 3, 0}));
  expect_corrupt(four_pieces({0}), "tokenizer.ggml.scores must have one entry for each of 4 tokens");
}

TEST(TokenizerSpec, Phi3TokensTakeTheSpaceBehindThem) {
  const auto tokenizer =
      make_tokenizer(spec_of(GgufBuilder()
                                 .set("tokenizer.ggml.model", "llama")
                                 .set("tokenizer.ggml.tokens", Strings{"<|user|>", "<|assistant|>", "<|system|>",
                                                                       "<|end|>", "a", "\xE2\x96\x81"})
                                 .set("tokenizer.ggml.scores", std::vector<float>(6, 0))
                                 .set("tokenizer.ggml.token_type", std::vector<int32_t>{3, 3, 3, 3, 1, 1})));
  EXPECT_EQ(tokenizer->encode("<|user|>\n a<|end|>", false, true), (std::vector<TokenId>{0, 5, 4, 3}));
}

TEST(TokenizerSpec, ReadsSmolLM2) {
  const std::string path = KIVI_SOURCE_DIR "/models/smollm2-135m.gguf";
  if (!std::filesystem::exists(path)) {
    ASSERT_EQ(std::getenv("KIVI_REQUIRE_MODEL"), nullptr) << path << " is missing; run tools/get-model smollm2-135m";
    GTEST_SKIP() << "run tools/get-model smollm2-135m to include this test";
  }
  const TokenizerSpec spec = read_tokenizer_spec(read_gguf(path));
  EXPECT_EQ(spec.algorithm, TokenizerSpec::Algorithm::kMerges);
  EXPECT_EQ(spec.spelling, TokenizerSpec::Spelling::kByteSymbols);
  EXPECT_EQ(spec.cuts.size(), 2U);  // smollm: digits, GPT-2's pattern
  EXPECT_EQ(spec.tokens.size(), 49152U);
  EXPECT_EQ(spec.types.size(), 49152U);
  EXPECT_EQ(spec.merges.size(), 48900U);
  EXPECT_EQ(spec.bos, 1);
  EXPECT_EQ(spec.eos, 2);
  EXPECT_FALSE(spec.add_bos);
  EXPECT_NE(spec.chat_template.find("<|im_start|>"), std::string::npos);
}

}  // namespace
}  // namespace kivi
