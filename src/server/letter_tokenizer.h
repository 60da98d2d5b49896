// A vocabulary for tests that can be seen through: as many tokens as the tiny model has.
#pragma once

#include <numeric>
#include <string>
#include <vector>

#include "text/tokenizer.h"

namespace kivi {

// 0 is the control token "<end>"; 1 to 26 are letters; 27 " "; 28 to 30 the three bytes of the euro sign; the others
// pairs: "aa", "ab" ...
class LetterTokenizer final : public Tokenizer {
 public:
  std::vector<TokenId> encode(std::string_view text, bool /*add_bos*/, bool /*parse_special*/) const override {
    std::vector<TokenId> ids;
    for (const char c : text) {
      for (TokenId id = 1; id <= 30; ++id) {
        if (token_bytes(id, false) == std::string(1, c)) ids.push_back(id);
      }
    }
    return ids;
  }
  std::string token_bytes(TokenId id, bool show_special) const override {
    if (id == 0) return show_special ? "<end>" : "";
    if (id <= 26) return std::string(1, static_cast<char>('a' + id - 1));
    if (id == 27) return " ";
    if (id <= 30) return std::string(1, "\xE2\x82\xAC"[id - 28]);
    return {'a', static_cast<char>('a' + id - 31)};
  }
  int32_t vocab_size() const override { return 50; }
  std::optional<TokenId> find(std::string_view /*token*/) const override { return std::nullopt; }
  std::optional<TokenId> bos() const override { return std::nullopt; }
  std::optional<TokenId> eos() const override { return 0; }
  const std::vector<TokenId>& end_ids() const override { return end_ids_; }

 private:
  std::vector<TokenId> end_ids_ = {0};
};

}  // namespace kivi
