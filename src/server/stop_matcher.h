// Finds stop strings in text that comes piece by piece. What could be the beginning of one is held back, so that no
// part of a stop string is ever shown.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace kivi {

class StopMatcher {
 public:
  // No stop is empty. With includes_stop the text ends with the stop, else before it.
  explicit StopMatcher(std::vector<std::string> stops, bool includes_stop = false)
      : stops_(std::move(stops)), includes_stop_(includes_stop) {}

  // The text that can be shown now: whole UTF-8 characters if the pieces and the stops are. Nothing after a match.
  std::string add(std::string_view piece);
  // At the end of the text: what was held back.
  std::string finish();
  // Whether a stop string has come: of several the one that ends first, of those the longest.
  bool matched() const { return matched_; }

 private:
  size_t held_bytes() const;

  std::vector<std::string> stops_;
  bool includes_stop_;
  std::string held_;
  bool matched_ = false;
};

}  // namespace kivi
