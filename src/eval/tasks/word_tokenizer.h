// A tokenizer for tests that can be seen through.
#pragma once

#include <map>
#include <string>
#include <utility>
#include <vector>

#include "text/tokenizer.h"

namespace kivi {

// Words and white space, letter for letter: a token is a run of either. Ids are given as words come.
class WordTokenizer final : public Tokenizer {
 public:
  std::vector<TokenId> encode(std::string_view text, bool /*add_bos*/, bool /*parse_special*/) const override {
    std::vector<TokenId> ids;
    for (size_t begin = 0, end = 0; begin < text.size(); begin = end) {
      const bool is_space = text[begin] == ' ' || text[begin] == '\n';
      end = is_space ? text.find_first_not_of(" \n", begin) : text.find_first_of(" \n", begin);
      end = std::min(end, text.size());
      const auto id = static_cast<TokenId>(words_.size());
      const auto [entry, is_new] = ids_.try_emplace(std::string(text.substr(begin, end - begin)), id);
      if (is_new) words_.push_back(entry->first);
      ids.push_back(entry->second);
    }
    return ids;
  }
  std::string token_bytes(TokenId id, bool /*show_special*/) const override {
    return words_.at(static_cast<size_t>(id));
  }
  int32_t vocab_size() const override { return 1 << 20; }
  std::optional<TokenId> find(std::string_view /*token*/) const override { return std::nullopt; }
  std::optional<TokenId> bos() const override { return std::nullopt; }
  std::optional<TokenId> eos() const override { return std::nullopt; }
  const std::vector<TokenId>& end_ids() const override { return end_ids_; }

 private:
  mutable std::map<std::string, TokenId> ids_;
  mutable std::vector<std::string> words_;
  std::vector<TokenId> end_ids_;
};

}  // namespace kivi
