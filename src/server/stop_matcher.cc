#include "server/stop_matcher.h"

#include <algorithm>
#include <utility>

namespace kivi {

std::string StopMatcher::add(std::string_view piece) {
  if (matched_) return {};
  held_ += piece;
  size_t begin = std::string::npos;
  size_t end = std::string::npos;
  for (const std::string& stop : stops_) {
    const size_t at = held_.find(stop);
    if (at == std::string::npos || at + stop.size() > end) continue;
    begin = at + stop.size() < end ? at : std::min(begin, at);
    end = at + stop.size();
  }
  if (end != std::string::npos) {
    matched_ = true;
    return std::exchange(held_, {}).substr(0, includes_stop_ ? end : begin);
  }
  const size_t n_safe = held_.size() - held_bytes();
  std::string shown = held_.substr(0, n_safe);
  held_.erase(0, n_safe);
  return shown;
}

std::string StopMatcher::finish() {
  return std::exchange(held_, {});
}

// The longest end of the text that begins a stop string.
size_t StopMatcher::held_bytes() const {
  size_t most = 0;
  for (const std::string& stop : stops_) {
    for (size_t n = std::min(stop.size() - 1, held_.size()); n > most; --n) {
      if (held_.compare(held_.size() - n, n, stop, 0, n) == 0) most = n;
    }
  }
  return most;
}

}  // namespace kivi
