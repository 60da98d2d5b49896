// Token-for-token equality with the PyPI packages tokenizers and sentencepiece, on more than 1 MB of text for each
// vocabulary, and of what the tokens decode to: see tests/golden/tokenizer/generate.py.
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <sstream>

#include "io/gguf.h"
#include "model/hf_tokenizer.h"
#include "model/tokenizer_spec.h"
#include "text/chat.h"
#include "text/detokenizer.h"
#include "text/golden_text.h"

namespace kivi {
namespace {

constexpr size_t kLeastBytes = 1'000'000;

std::string bytes_of(const std::vector<TokenId>& ids) {
  return {reinterpret_cast<const char*>(ids.data()), ids.size() * sizeof(TokenId)};
}

std::string streamed(const Tokenizer& tokenizer, const std::vector<TokenId>& ids) {
  StreamDetokenizer detokenizer(tokenizer);
  std::string text;
  for (const TokenId id : ids) text += detokenizer.add(id);
  return text + detokenizer.finish();
}

// Encodes every chunk of synthetic text, every second one with control tokens parsed where the oracle can, and compares
// it with its line of `golden_file`.
void expect_golden(const TokenizerSpec& spec, std::string_view golden_file) {
  const auto tokenizer = make_tokenizer(spec);
  golden::TextMaker maker(spec);
  std::istringstream lines(golden::read_file(golden_file));
  lines >> std::hex;
  size_t n_bytes = 0;
  uint64_t text_hash, ids_hash, decoded_hash;
  size_t n_ids;
  const bool parses_special = spec.algorithm == TokenizerSpec::Algorithm::kMerges;
  for (uint64_t index = 0; lines >> text_hash >> std::dec >> n_ids >> std::hex >> ids_hash >> decoded_hash; ++index) {
    const std::string text = maker.chunk(index);
    ASSERT_EQ(golden::fnv1a(text), text_hash) << "chunk " << index << ": not the text that generate.py made";
    const std::vector<TokenId> ids = tokenizer->encode(text, false, parses_special && index % 2 == 1);
    EXPECT_EQ(ids.size(), n_ids) << "chunk " << index;
    ASSERT_EQ(golden::fnv1a(bytes_of(ids)), ids_hash) << "chunk " << index;
    ASSERT_EQ(golden::fnv1a(tokenizer->decode(ids)), decoded_hash) << "chunk " << index;
    ASSERT_EQ(streamed(*tokenizer, ids), tokenizer->decode(ids)) << "chunk " << index;
    n_bytes += text.size();
  }
  EXPECT_GE(n_bytes, kLeastBytes);
}

class TinyGolden : public testing::TestWithParam<const char*> {};

TEST_P(TinyGolden, IsThatOfTokenizers) {
  expect_golden(golden::tiny_spec(GetParam()), std::string("tiny-") + GetParam() + ".tsv");
}
INSTANTIATE_TEST_SUITE_P(Tokenizer, TinyGolden, testing::Values("smollm", "qwen2", "llama-bpe", "gpt-2", "falcon"));

class FamilyGolden : public testing::TestWithParam<const char*> {};

TEST_P(FamilyGolden, IsThatOfTokenizersOrSentencePiece) {
  const std::string name = GetParam();
  expect_golden(read_hf_tokenizer(golden::path("families/" + name)), name + ".tsv");
}
INSTANTIATE_TEST_SUITE_P(Tokenizer, FamilyGolden,
                         testing::Values("llama1", "llama2", "llama3", "mistral", "falcon", "qwen2", "gemma", "phi3",
                                         "smollm", "sentencepiece-bpe", "sentencepiece-unigram"));

// A prompt that is laid out turn by turn has the ids that the tokenizer gives what the template renders: with the
// spaces that SentencePiece adds and Phi-3's tokens take.
TEST(ChatGolden, PromptsHaveTheIdsOfRenderedTemplates) {
  constexpr std::pair<const char*, const char*> kFamilies[] = {{"llama2", "llama2"}, {"mistral", "mistral"},
                                                               {"gemma", "gemma3"},  {"phi3", "phi3"},
                                                               {"falcon", "falcon"}, {"qwen2", "qwen2.5"}};
  const nlohmann::json tests = golden::read_json("chat.json");
  for (const auto& [family, name] : kFamilies) {
    const auto tokenizer = make_tokenizer(read_hf_tokenizer(golden::path("families/") + family));
    const std::string file = std::string(name) + ".jinja", source = golden::read_file("templates/" + file);
    for (const nlohmann::json& test : tests) {
      if (test["template"] != file || test["messages"].dump().find("<|im_end|>") != std::string::npos) continue;
      std::vector<ChatMessage> messages;
      for (const auto& message : test["messages"]) messages.push_back({message["role"], message["content"]});
      const std::vector<TokenId> expected = tokenizer->encode(test["prompt"].get<std::string>(), false, true);
      EXPECT_EQ(encode_chat(*tokenizer, recognise_chat_format(source), messages, default_system_prompt(source)),
                expected)
          << family << ": " << test["prompt"];
    }
  }
}

class ModelGolden : public testing::TestWithParam<const char*> {};

TEST_P(ModelGolden, IsThatOfTokenizersOrSentencePiece) {
  const std::string name = GetParam();
  const std::string path = KIVI_SOURCE_DIR "/models/" + name + ".gguf";
  if (!std::filesystem::exists(path)) {
    const bool is_required = std::getenv("CI") != nullptr || std::getenv("KIVI_REQUIRE_MODEL") != nullptr;
    if (is_required && name == "smollm2-135m") FAIL() << path << " is not there; get it with tools/get-model " << name;
    GTEST_SKIP() << path << " is not there; get it with tools/get-model " << name;
  }
  expect_golden(read_tokenizer_spec(read_gguf(path)), name + ".tsv");
}
INSTANTIATE_TEST_SUITE_P(Tokenizer, ModelGolden, testing::Values("smollm2-135m", "gemma3-270m"));

}  // namespace
}  // namespace kivi
