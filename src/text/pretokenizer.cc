#include "text/pretokenizer.h"

#include <algorithm>

#include "core/error.h"
#include "text/unicode.h"

namespace kivi {
namespace {

using Matches = TextCut::Matches;
using Pieces = std::vector<std::string_view>;

// A stretch of text, and whether the pattern (or, inverted, what lies between its matches) matched it.
struct Stretch {
  size_t begin, end;
  bool is_match;
};

std::vector<Stretch> stretches_of(RegexMatcher& matcher, bool is_inverted, std::string_view text) {
  std::vector<Stretch> stretches;
  size_t done = 0;
  matcher.for_each_match(text, [&](size_t begin, size_t end) {
    if (begin > done) stretches.push_back({done, begin, is_inverted});
    stretches.push_back({begin, end, !is_inverted});
    done = end;
  });
  if (done < text.size()) stretches.push_back({done, text.size(), is_inverted});
  return stretches;
}

// Whether the stretch `next` belongs to the piece of the one before it.
bool joins(Matches matches, const Stretch& stretch, const Stretch& next) {
  switch (matches) {
    case Matches::kIsolated:
    case Matches::kRemoved:
      return false;
    case Matches::kWithPrevious:
      return next.is_match && !stretch.is_match;
    case Matches::kWithNext:
      return stretch.is_match && !next.is_match;
    case Matches::kContiguous:
      return stretch.is_match == next.is_match;
  }
  return false;
}

bool is_invalid(std::string_view piece) {
  return piece.size() == 1 && (static_cast<uint8_t>(piece[0]) & 0x80) != 0;
}

void cut(RegexMatcher& matcher, const TextCut& options, std::string_view piece, Pieces& out) {
  if (is_invalid(piece)) {
    out.push_back(piece);
    return;
  }
  const std::vector<Stretch> stretches = stretches_of(matcher, options.is_inverted, piece);
  for (size_t i = 0; i < stretches.size();) {
    size_t last = i;
    while (last + 1 < stretches.size() && joins(options.matches, stretches[last], stretches[last + 1])) ++last;
    const bool is_removed = options.matches == Matches::kRemoved && stretches[i].is_match;
    if (!is_removed) out.push_back(piece.substr(stretches[i].begin, stretches[last].end - stretches[i].begin));
    i = last + 1;
  }
}

// Runs of valid UTF-8 and single bytes between them.
Pieces valid_runs(std::string_view bytes) {
  Pieces runs;
  while (!bytes.empty()) {
    const size_t size = std::max(valid_utf8_prefix(bytes), size_t{1});
    runs.push_back(bytes.substr(0, size));
    bytes.remove_prefix(size);
  }
  return runs;
}

}  // namespace

Pretokenizer::Pretokenizer(const std::vector<TextCut>& cuts) {
  bool is_bytes = false;
  for (const TextCut& options : cuts) {
    if (is_bytes && !options.is_bytes) {
      fail(ErrorCode::kUnsupported, "pre-tokeniser: a cut of characters after one of bytes is not supported");
    }
    is_bytes = options.is_bytes;
    cuts_.push_back({Regex(options.pattern, is_bytes), options});
  }
}

std::vector<std::string_view> Pretokenizer::split(std::string_view bytes) const {
  Pieces pieces = valid_runs(bytes);
  for (const Cut& step : cuts_) {
    Pieces smaller;
    smaller.reserve(pieces.size());
    RegexMatcher matcher(step.regex);
    for (const std::string_view piece : pieces) cut(matcher, step.options, piece, smaller);
    pieces = std::move(smaller);
  }
  return pieces;
}

}  // namespace kivi
