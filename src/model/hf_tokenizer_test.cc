#include "model/hf_tokenizer.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>

#include "core/error.h"
#include "text/tokenizer.h"

namespace kivi {
namespace {

using nlohmann::json;
using TokenType = TokenizerSpec::TokenType;

// A folder of its own, removed at the end.
class Folder {
 public:
  Folder() : path_(testing::TempDir() + "kivi-hf-tokenizer-" + std::to_string(getpid())) {
    std::filesystem::remove_all(path_);
    std::filesystem::create_directories(path_);
  }
  ~Folder() { std::filesystem::remove_all(path_); }

  // A string is the file's content, anything else its JSON.
  Folder& write(const std::string& name, const json& content) {
    std::ofstream(path_ + "/" + name, std::ios::binary)
        << (content.is_string() ? content.get_ref<const std::string&>() : content.dump());
    return *this;
  }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

json tokenizer_json() {
  return json::parse(R"({
    "added_tokens": [{"id": 4, "content": "<s>", "special": true}, {"id": 6, "content": "<tool>", "rstrip": true}],
    "normalizer": null,
    "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "use_regex": true},
    "post_processor": {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>"}}, {"Sequence": {"id": "A"}}]},
    "decoder": {"type": "ByteLevel"},
    "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2, "\u0120": 3, "<s>": 4}, "merges": ["a b"]}
  })");
}

// A message of SentencePiece's file: fields of a number, of text, of a score.
std::string varint(uint64_t value) {
  std::string bytes;
  for (; value >= 0x80; value >>= 7) bytes += static_cast<char>(value | 0x80);
  return bytes += static_cast<char>(value);
}
std::string number(uint64_t field, uint64_t value) {
  return varint(field << 3) + varint(value);
}
std::string text(uint64_t field, std::string_view value) {
  return varint(field << 3 | 2) + varint(value.size()).append(value);
}
std::string piece(std::string_view token, float score, uint64_t type) {
  std::string bytes = text(1, token) + varint(2 << 3 | 5);
  bytes.append(reinterpret_cast<const char*>(&score), sizeof(score));
  return text(1, bytes + number(3, type));
}
std::string sentencepiece(const std::string& trainer = number(3, 2), const std::string& normaliser = number(4, 0)) {
  return piece("<unk>", 0, 2) + piece("<s>", 0, 3) + piece("</s>", 0, 3) + piece("a", -1, 1) + piece("b", -2, 1) +
         piece("ab", -3, 1) + piece("\xE2\x96\x81", -4, 1) + text(2, trainer) + text(3, normaliser);
}

TEST(HfTokenizer, ReadsTokenizerJson) {
  Folder folder;
  const TokenizerSpec spec = read_hf_tokenizer(folder.write("tokenizer.json", tokenizer_json()).path());
  EXPECT_EQ(spec.tokens, (std::vector<std::string>{"a", "b", "ab", "\xC4\xA0", "<s>", "", "<tool>"}));
  EXPECT_EQ(spec.types[4], TokenType::kControl);
  EXPECT_EQ(spec.types[5], TokenType::kUnused);  // the file leaves 5 out
  EXPECT_EQ(spec.types[6], TokenType::kUserDefined);
  EXPECT_EQ(spec.bos, 4);
  EXPECT_TRUE(spec.add_bos);
  const auto tokenizer = make_tokenizer(spec);
  EXPECT_EQ(tokenizer->encode("ab<tool> \n b", true, false), (std::vector<TokenId>{4, 2, 6, 1}));
  EXPECT_EQ(tokenizer->token_bytes(5), "");
}

TEST(HfTokenizer, ReadsWhatStandsBeside) {
  Folder folder;
  folder.write("tokenizer.json", tokenizer_json())
      .write("special_tokens_map.json", json{{"bos_token", "b"}, {"pad_token", "<s>"}})
      .write("tokenizer_config.json",
             json{{"bos_token", nullptr},
                  {"eos_token", {{"content", "ab"}}},
                  {"add_bos_token", false},
                  {"chat_template",
                   {{{"name", "tool_use"}, {"template", "x"}}, {{"name", "default"}, {"template", "{{ y }}"}}}}})
      .write("generation_config.json", json{{"eos_token_id", {2, 1}}});
  const TokenizerSpec spec = read_hf_tokenizer(folder.path());
  EXPECT_EQ(spec.bos, 1);
  EXPECT_EQ(spec.eos, 2);
  EXPECT_EQ(spec.pad, 4);
  EXPECT_FALSE(spec.add_bos);
  EXPECT_EQ(spec.ends, (std::vector<TokenId>{2, 1}));
  EXPECT_EQ(spec.chat_template, "{{ y }}");
  EXPECT_EQ(make_tokenizer(spec)->end_ids(), (std::vector<TokenId>{2, 1}));
  folder.write("chat_template.jinja", "{{ z }}");
  EXPECT_EQ(read_hf_tokenizer(folder.path()).chat_template, "{{ z }}");
}

TEST(HfTokenizer, ReadsSentencePiece) {
  Folder folder;
  folder.write("tokenizer.model", sentencepiece());
  const TokenizerSpec spec = read_hf_tokenizer(folder.path());
  EXPECT_EQ(spec.algorithm, TokenizerSpec::Algorithm::kScores);
  EXPECT_EQ(spec.unknown, 0);
  EXPECT_EQ(spec.bos, 1);
  EXPECT_EQ(spec.eos, 2);
  EXPECT_TRUE(spec.add_bos);
  EXPECT_EQ(make_tokenizer(spec)->encode("ab !?a", true, true), (std::vector<TokenId>{1, 6, 5, 6, 0, 3}));
}

TEST(HfTokenizer, SentencePieceGetsTheAddedTokensOfTheConfig) {
  Folder folder;
  folder.write("tokenizer.model", sentencepiece())
      .write(
          "tokenizer_config.json",
          json{{"legacy", false},
               {"added_tokens_decoder", {{"7", {{"content", "<|end|>"}, {"special", true}, {"normalized", true}}}}}});
  const auto tokenizer = make_tokenizer(read_hf_tokenizer(folder.path()));
  EXPECT_EQ(tokenizer->vocab_size(), 8);
  EXPECT_EQ(tokenizer->encode("a<|end|>a", false, true), (std::vector<TokenId>{6, 3, 7, 3}));  // no space in the middle
  folder.write("tokenizer_config.json", json{{"legacy", true}});
  EXPECT_EQ(make_tokenizer(read_hf_tokenizer(folder.path()))->encode("a</s>a", false, true),
            (std::vector<TokenId>{6, 3, 2, 6, 3}));
}

void expect_error(const Folder& folder, ErrorCode code, const std::string& message) {
  try {
    make_tokenizer(read_hf_tokenizer(folder.path()));
    ADD_FAILURE() << "no error; expected: " << message;
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), code) << error.what();
    EXPECT_EQ(error.what(), folder.path() + message);
  }
}

TEST(HfTokenizer, RefusesWhatIsMissing) {
  Folder folder;
  expect_error(folder, ErrorCode::kNotFound, ": has neither tokenizer.json nor tokenizer.model; fetch one of them");
  folder.write("tokenizer.json", "{\"model\":");
  expect_error(folder, ErrorCode::kCorrupt, "/tokenizer.json: is not JSON from byte 9 on; fetch the file again");
  folder.write("tokenizer.json", "[]");
  expect_error(folder, ErrorCode::kCorrupt, "/tokenizer.json: is JSON, but not an object; fetch the file again");
  folder.write("tokenizer.json", "{}");
  expect_error(folder, ErrorCode::kCorrupt, "/tokenizer.json: 'model.vocab' is missing, must be an object");
}

TEST(HfTokenizer, RefusesBrokenTokenizerJson) {
  struct Case {
    std::function<void(json&)> damage;
    std::string message;
    ErrorCode code = ErrorCode::kCorrupt;
  };
  const ErrorCode unsupported = ErrorCode::kUnsupported;
  const std::vector<Case> cases = {
      {[](json& j) { j["model"]["type"] = "WordPiece"; }, "'model' has type 'WordPiece', must be BPE", unsupported},
      {[](json& j) { j["model"]["vocab"]["a"] = -1; },
       "'model.vocab' has token 'a' whose id is no number from 0 to 2147483647"},
      {[](json& j) { j["model"]["vocab"]["a"] = 1; }, "'model.vocab' has id 1 twice"},
      {[](json& j) { j["model"]["vocab"]["a"] = 5000; }, "'model.vocab' has token id 5000, beyond 1033 for 5 entries"},
      {[](json& j) { j["model"]["merges"][0] = "ab"; },
       "'model.merges[0]' is neither \"left right\" nor [\"left\", \"right\"]"},
      {[](json& j) { j["model"]["merges"] = 3; }, "'model.merges' is number, must be an array"},
      {[](json& j) { j["model"]["end_of_word_suffix"] = "</w>"; },
       "'model.end_of_word_suffix' is '</w>', must be empty", unsupported},
      {[](json& j) { j["added_tokens"][1]["single_word"] = true; },
       "'added_tokens[1]' is a token of single words only ('<tool>'): not supported", unsupported},
      {[](json& j) { j["added_tokens"][1]["id"] = 2; }, "'added_tokens[1]' is '<tool>' with id 2, which is token 'ab'"},
      {[](json& j) { j["added_tokens"][0].erase("id"); },
       "'added_tokens[0].id' is missing, must be a number from 0 to 2147483647"},
      {[](json& j) {
         j["normalizer"] = {{"type", "Lowercase"}};
       },
       "'normalizer' has type 'Lowercase', must be one of Sequence, NFC, NFKC, Prepend, Replace", unsupported},
      {[](json& j) {
         j["normalizer"] = json::parse(R"({"type": "Replace", "pattern": {"Regex": "x"}, "content": ""})");
       },
       "'normalizer' replaces a regular expression: not supported", unsupported},
      {[](json& j) {
         j["pre_tokenizer"] = {{"type", "BertPreTokenizer"}};
       },
       "'pre_tokenizer' has type 'BertPreTokenizer', must be one of Sequence, Split, Digits, ByteLevel, Metaspace, "
       "Punctuation",
       unsupported},
      {[](json& j) {
         j["pre_tokenizer"] = json::parse(R"({"type": "Sequence", "pretokenizers": [
             {"type": "ByteLevel", "add_prefix_space": false}, {"type": "Split", "pattern": {"Regex": "\\s"}}]})");
       },
       "'pre_tokenizer.pretokenizers[1]' comes after ByteLevel: not supported", unsupported},
      {[](json& j) {
         j["pre_tokenizer"] = json::parse(R"({"type": "Sequence", "pretokenizers": [
             {"type": "Digits", "individual_digits": true}, {"type": "ByteLevel", "add_prefix_space": true}]})");
       },
       "'pre_tokenizer.pretokenizers[1]' adds a space to every piece of an earlier step: not supported", unsupported},
      {[](json& j) {
         j["pre_tokenizer"] = {{"type", "Metaspace"}, {"replacement", "_"}};
       },
       "'pre_tokenizer' has replacement '_', must be U+2581", unsupported},
      {[](json& j) {
         j["decoder"] = {{"type", "WordPiece"}};
       },
       "'decoder' has type 'WordPiece', must be one of ByteLevel, Metaspace, Replace, ByteFallback, Fuse, Strip",
       unsupported},
      {[](json& j) { j["post_processor"]["single"][0]["SpecialToken"]["id"] = "<b>"; },
       "'post_processor.single[0].SpecialToken.id' is '<b>', no token"},
  };
  for (const Case& test : cases) {
    json file = tokenizer_json();
    test.damage(file);
    Folder folder;
    expect_error(folder.write("tokenizer.json", file), test.code, "/tokenizer.json: " + test.message);
  }
}

TEST(HfTokenizer, RefusesBrokenFilesBeside) {
  const auto refuse = [](const std::string& name, const json& content, const std::string& message) {
    Folder folder;
    folder.write("tokenizer.json", tokenizer_json()).write(name, content);
    expect_error(folder, ErrorCode::kCorrupt, "/" + name + ": " + message);
  };
  refuse("tokenizer_config.json", {{"eos_token", "<e>"}}, "'eos_token' is '<e>', which is no token");
  refuse("tokenizer_config.json", {{"add_bos_token", 1}}, "'add_bos_token' is number, must be true or false");
  refuse("generation_config.json", {{"eos_token_id", {1, 7}}},
         "'eos_token_id[1]' is 7, but the vocabulary has 7 tokens");
}

TEST(HfTokenizer, RefusesBrokenSentencePiece) {
  const auto refuse = [](const std::string& bytes, ErrorCode code, const std::string& message) {
    Folder folder;
    expect_error(folder.write("tokenizer.model", bytes), code, "/tokenizer.model: " + message);
  };
  const std::string end = "; it is no SentencePiece model, or broken: fetch it again";
  refuse("version https://", ErrorCode::kCorrupt, "has a field of unknown type" + end);
  refuse(sentencepiece().substr(0, 20), ErrorCode::kCorrupt, "a field of 12 bytes, but only 2 follow" + end);
  refuse("\x0A\x7F", ErrorCode::kCorrupt, "a field of 127 bytes, but only 0 follow" + end);
  refuse(std::string(11, '\xFF'), ErrorCode::kCorrupt, "a number is longer than 10 bytes" + end);
  refuse("\x0B", ErrorCode::kCorrupt, "has a field of unknown type" + end);
  refuse(text(9, ""), ErrorCode::kCorrupt, "has no pieces" + end);
  refuse(number(1, 1), ErrorCode::kCorrupt, "field 1 has another type than it must" + end);
  refuse(piece("a", 0, 7), ErrorCode::kCorrupt, "piece 0 has type 7, must be 1 to 6" + end);
  refuse(sentencepiece(number(3, 4)), ErrorCode::kUnsupported,
         "SentencePiece model type 4: must be 1 (unigram) or 2 (BPE)");
  refuse(sentencepiece(number(3, 2), text(1, "nmt_nfkc") + text(2, "map")), ErrorCode::kUnsupported,
         "normaliser 'nmt_nfkc' with a map of characters: not supported, must be identity");
  refuse(sentencepiece(number(3, 2) + number(24, 1)), ErrorCode::kUnsupported,
         "spaces as suffixes of words: not supported");
}

}  // namespace
}  // namespace kivi
