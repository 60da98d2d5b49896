#include "text/unigram.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "core/error.h"
#include "text/unicode.h"

namespace kivi {
namespace {

constexpr float kUnknownPenalty = 10;        // an unknown character costs so much more than the rarest token
constexpr float kUserDefinedPenalty = 0.1F;  // a user-defined token costs no more than this, whatever its score

}  // namespace

Unigram::Unigram(const Vocabulary& vocabulary, std::vector<float> scores)
    : vocabulary_(&vocabulary), scores_(std::move(scores)) {
  if (std::cmp_not_equal(scores_.size(), vocabulary.size())) {
    fail(ErrorCode::kCorrupt, "vocabulary of {} tokens and {} scores: must be as many; the model file is broken",
         vocabulary.size(), scores_.size());
  }
  float least = std::numeric_limits<float>::max();
  float most = std::numeric_limits<float>::min();
  for (TokenId id = 0; id < vocabulary.size(); ++id) {
    const float score = scores_[static_cast<size_t>(id)];
    if (!std::isfinite(score)) fail(ErrorCode::kCorrupt, "token {}: has score {}; the model file is broken", id, score);
    if (vocabulary.is_text(id)) trie_.add(vocabulary.token(id), id);
    if (vocabulary.type(id) != TokenizerSpec::TokenType::kNormal) continue;
    least = std::min(least, score);
    most = std::max(most, score);
  }
  unknown_score_ = least - kUnknownPenalty;
  for (TokenId id = 0; id < vocabulary.size(); ++id) {
    if (vocabulary.type(id) != TokenizerSpec::TokenType::kUserDefined) continue;
    const auto size = static_cast<float>(vocabulary.token(id).size());
    scores_[static_cast<size_t>(id)] = size * most - kUserDefinedPenalty;
  }
}

void Unigram::append_best(std::string_view text, std::vector<TokenId>& out) const {
  // The best way to each place in the text: its sum, and the token that it ends with (-1: an unknown character).
  struct Place {
    float sum = -std::numeric_limits<float>::infinity();
    size_t from = 0;
    TokenId id = -1;
  };
  std::vector<Place> places(text.size() + 1);
  places[0].sum = 0;
  for (size_t at = 0; at < text.size(); at += utf8_head(text.substr(at)).size) {
    const std::string_view rest = text.substr(at);
    const size_t character = utf8_head(rest).size;
    const float sum = places[at].sum;
    const auto offer = [&](size_t size, TokenId id, float score) {
      Place& place = places[at + size];
      if (sum + score > place.sum) place = {sum + score, at, id};
    };
    bool has_character = false;
    trie_.match(rest, [&](size_t size, TokenId id) {
      offer(size, id, scores_[static_cast<size_t>(id)]);
      has_character = has_character || size == character;
    });
    if (!has_character) offer(character, -1, unknown_score_);
  }
  std::vector<size_t> path;
  for (size_t at = text.size(); at > 0; at = places[at].from) path.push_back(at);
  const size_t n_before = out.size();
  for (auto it = path.rbegin(); it != path.rend(); ++it) {
    const Place& place = places[*it];
    if (place.id >= 0) {
      out.push_back(place.id);
    } else {
      vocabulary_->append_fallback(text.substr(place.from, *it - place.from), n_before, out);
    }
  }
}

}  // namespace kivi
