// Token-for-token equality with the PyPI package tokenizers, on more than 1 MB of text for each vocabulary: see
// tests/golden/tokenizer/generate.py.
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <sstream>

#include "model/tokenizer_spec.h"
#include "text/golden_text.h"
#include "text/unicode.h"

namespace kivi {
namespace {

constexpr size_t kLeastBytes = 1'000'000;

std::string bytes_of(const std::vector<TokenId>& ids) {
  return {reinterpret_cast<const char*>(ids.data()), ids.size() * sizeof(TokenId)};
}

// Encodes every chunk of synthetic text and compares it with its line of `golden_file`.
void expect_golden(const TokenizerSpec& spec, std::string_view golden_file) {
  const auto tokenizer = make_tokenizer(spec);
  golden::TextMaker maker(spec);
  const bool normalises = !spec.normaliser.empty();
  std::istringstream lines(golden::read_file(golden_file));
  lines >> std::hex;
  size_t n_bytes = 0;
  uint64_t text_hash, ids_hash;
  size_t n_ids;
  for (uint64_t index = 0; lines >> text_hash >> std::dec >> n_ids >> std::hex >> ids_hash; ++index) {
    const std::string text = maker.chunk(index);
    ASSERT_EQ(golden::fnv1a(text), text_hash) << "chunk " << index << ": not the text that generate.py made";
    const std::vector<TokenId> ids = tokenizer->encode(text, false, index % 2 == 1);
    EXPECT_EQ(ids.size(), n_ids) << "chunk " << index;
    ASSERT_EQ(golden::fnv1a(bytes_of(ids)), ids_hash) << "chunk " << index;
    const std::string decoded = tokenizer->decode(ids, true);
    ASSERT_EQ(normalises ? nfc(decoded) : decoded, normalises ? nfc(text) : text) << "chunk " << index;
    n_bytes += text.size();
  }
  EXPECT_GE(n_bytes, kLeastBytes);
}

TEST(TokenizerGolden, TinySmollm) {
  expect_golden(golden::tiny_spec("smollm"), "tiny-smollm.tsv");
}
TEST(TokenizerGolden, TinyQwen2) {
  expect_golden(golden::tiny_spec("qwen2"), "tiny-qwen2.tsv");
}
TEST(TokenizerGolden, TinyLlamaBpe) {
  expect_golden(golden::tiny_spec("llama-bpe"), "tiny-llama-bpe.tsv");
}
TEST(TokenizerGolden, TinyGpt2) {
  expect_golden(golden::tiny_spec("gpt-2"), "tiny-gpt-2.tsv");
}

TEST(TokenizerGolden, SmolLM2) {
  const std::string path = KIVI_SOURCE_DIR "/models/smollm2-135m.gguf";
  if (!std::filesystem::exists(path)) {
    const bool is_required = std::getenv("CI") != nullptr || std::getenv("KIVI_REQUIRE_MODEL") != nullptr;
    if (is_required) FAIL() << path << " is not there; get it with tools/get-model smollm2-135m";
    GTEST_SKIP() << path << " is not there; get it with tools/get-model smollm2-135m";
  }
  expect_golden(read_tokenizer_spec(GgufFile(path)), "smollm2-135m.tsv");
}

}  // namespace
}  // namespace kivi
