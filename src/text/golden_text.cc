#include "text/golden_text.h"

#include <utf8proc.h>

#include <fstream>
#include <iterator>
#include <stdexcept>

#include "text/byte_alphabet.h"
#include "text/byte_pair.h"
#include "text/normaliser.h"
#include "text/presets.h"
#include "text/unicode.h"

namespace kivi::golden {
namespace {

constexpr size_t kChunkBytes = 4096;
constexpr size_t kMostExcerpt = 200;  // characters

std::vector<std::string> characters_of(std::string_view text) {
  std::vector<std::string> characters;
  while (!text.empty()) {
    const size_t size = utf8_head(text).size;
    characters.emplace_back(text.substr(0, size));
    text.remove_prefix(size);
  }
  return characters;
}

// The text of a normal token.
std::string spelled(const TokenizerSpec& spec, size_t id) {
  if (spec.spelling == TokenizerSpec::Spelling::kByteSymbols) return symbols_to_bytes(spec.tokens[id]);
  std::string storage;
  const Normaliser normaliser({{TextChange::Kind::kReplace, std::string(kMetaspace), " "}});
  return std::string(normaliser.apply(spec.tokens[id], true, storage));
}

}  // namespace

std::string path(std::string_view name) {
  return std::string(KIVI_SOURCE_DIR "/tests/golden/tokenizer/").append(name);
}

std::string read_file(std::string_view name) {
  std::ifstream file(path(name), std::ios::binary);
  if (!file) throw std::runtime_error("cannot open " + path(name));
  return {std::istreambuf_iterator<char>(file), {}};
}

nlohmann::json read_json(std::string_view name) {
  return nlohmann::json::parse(read_file(name));
}

TokenizerSpec tiny_spec(std::string_view pre) {
  using TokenType = TokenizerSpec::TokenType;
  const nlohmann::json tiny = read_json("tiny.json");
  TokenizerSpec spec;
  set_pretokeniser(spec, pre);
  for (int byte = 0; byte < 256; ++byte) spec.tokens.push_back(byte_symbol(static_cast<uint8_t>(byte)));
  for (const auto& line : tiny["merges"]) {
    const auto& [left, right] = spec.merges.emplace_back(*parse_merge(line.get<std::string>()));
    spec.tokens.push_back(left + right);
  }
  const auto append = [&](const char* key, TokenType type) {
    for (const auto& token : tiny[key]) spec.tokens.push_back(token);
    spec.types.resize(spec.tokens.size(), type);
  };
  append("unmerged", TokenType::kNormal);
  append("user_defined", TokenType::kUserDefined);
  append("control", TokenType::kControl);
  return spec;
}

uint64_t fnv1a(std::string_view bytes) {
  uint64_t value = 0xCBF29CE484222325u;
  for (const char byte : bytes) value = (value ^ static_cast<uint8_t>(byte)) * 0x100000001B3u;
  return value;
}

TextMaker::TextMaker(const TokenizerSpec& spec) : excerpt_(characters_of(read_file("excerpts.txt"))) {
  const nlohmann::json ingredients = read_json("ingredients.json");
  code_points_ = ingredients["code_points"];
  lists_ = ingredients["lists"];
  for (size_t id = 0; id < spec.tokens.size(); ++id) {
    if (spec.types[id] != TokenizerSpec::TokenType::kNormal) continue;
    std::string word = spelled(spec, id);
    if (valid_utf8_prefix(word) == word.size()) words_.push_back(std::move(word));
  }
}

std::string TextMaker::chunk(uint64_t index) {
  state_ = index;
  std::string text;
  while (text.size() < kChunkBytes) text += piece();
  return text;
}

size_t TextMaker::below(size_t limit) {
  state_ = state_ * 6364136223846793005u + 1442695040888963407u;
  return static_cast<size_t>(state_ >> 33) % limit;
}

std::string TextMaker::some(size_t most, const std::function<std::string()>& choose) {
  std::string text;
  for (size_t n = 1 + below(most); n > 0; --n) text += choose();
  return text;
}

std::string TextMaker::code_point() {
  const nlohmann::json& range = code_points_[below(code_points_.size())];
  const auto first = range[0].get<int32_t>();
  const auto last = range[1].get<int32_t>();
  utf8proc_uint8_t bytes[4];
  const auto size =
      utf8proc_encode_char(first + static_cast<int32_t>(below(static_cast<size_t>(last - first + 1))), bytes);
  return {reinterpret_cast<const char*>(bytes), static_cast<size_t>(size)};
}

std::string TextMaker::piece() {
  const size_t kind = below(4 + lists_.size());
  if (kind < 2) {
    const size_t begin = below(excerpt_.size() - kMostExcerpt);
    const size_t size = 1 + below(kMostExcerpt);
    std::string text;
    for (size_t i = 0; i < size; ++i) text += excerpt_[begin + i];
    return text;
  }
  if (kind == 2) return some(8, [&] { return words_[below(words_.size())]; });
  if (kind == 3) return some(12, [&] { return code_point(); });
  const nlohmann::json& entries = lists_[kind - 4];
  return some(8, [&] { return entries[below(entries.size())].get<std::string>(); });
}

}  // namespace kivi::golden
