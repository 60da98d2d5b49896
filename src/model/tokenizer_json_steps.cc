// Normalisers and pre-tokenisers of tokenizer.json.
#include <array>
#include <string>

#include "model/tokenizer_json.h"
#include "text/presets.h"
#include "text/regex.h"

namespace kivi {
namespace {

using Kind = TextChange::Kind;
using Matches = TextCut::Matches;
using Spelling = TokenizerSpec::Spelling;

Matches read_behaviour(const JsonField& behaviour) {
  if (behaviour.is_null()) return Matches::kIsolated;
  constexpr std::array<std::pair<std::string_view, Matches>, 5> kNames = {
      {{"Isolated", Matches::kIsolated},
       {"Removed", Matches::kRemoved},
       {"MergedWithPrevious", Matches::kWithPrevious},
       {"MergedWithNext", Matches::kWithNext},
       {"Contiguous", Matches::kContiguous}}};
  for (const auto& [name, matches] : kNames) {
    if (behaviour.string() == name) return matches;
  }
  behaviour.fail(ErrorCode::kUnsupported, "is {}: not supported", kivi::quoted(behaviour.string()));
}

// Whether a pattern means the same for text and for the symbols of its bytes.
bool is_plain_ascii(std::string_view pattern) {
  constexpr std::string_view kAllowed = "[]()|?*+-{},";
  for (const char c : pattern) {
    const bool is_alphanumeric = (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z');
    if (!is_alphanumeric && kAllowed.find(c) == std::string_view::npos) return false;
  }
  return true;
}

// The steps of a pre-tokeniser in their order. From ByteLevel on, they see the symbols of bytes; we leave the bytes as
// they are and cut those.
class StepReader {
 public:
  explicit StepReader(TokenizerSpec& spec) : spec_(&spec) {}

  void read(const JsonField& step) {
    const std::string& type = step["type"].string();
    if (type == "Sequence") {
      const JsonField steps = step["pretokenizers"];
      for (size_t i = 0; i < steps.array().size(); ++i) read(steps[i]);
    } else if (type == "Split") {
      read_split(step);
    } else if (type == "Digits") {
      read_digits(step);
    } else if (type == "ByteLevel") {
      read_byte_level(step);
    } else if (type == "Metaspace") {
      read_metaspace(step);
    } else if (type == "Punctuation") {
      require_text(step);
      spec_->cuts.push_back({patterns::kPunctuation, read_behaviour(step["behavior"])});
    } else {
      step.fail(ErrorCode::kUnsupported,
                "has type {}, must be one of Sequence, Split, Digits, ByteLevel, Metaspace, Punctuation",
                kivi::quoted(type));
    }
  }

 private:
  bool is_bytes() const { return spec_->spelling == Spelling::kByteSymbols; }

  void require_text(const JsonField& step) const {
    if (is_bytes()) step.fail(ErrorCode::kUnsupported, "comes after ByteLevel: not supported");
  }
  void require_first(const JsonField& step) const {
    if (!spec_->cuts.empty() || is_bytes()) {
      step.fail(ErrorCode::kUnsupported, "adds a space to every piece of an earlier step: not supported");
    }
  }

  void read_split(const JsonField& step) {
    const JsonField pattern = step["pattern"];
    const bool is_literal = !pattern["String"].is_null();
    const std::string& text = pattern[is_literal ? "String" : "Regex"].string();
    if (text.empty()) pattern.fail(ErrorCode::kCorrupt, "is empty");
    if (is_bytes() && !is_plain_ascii(text)) require_text(step);
    TextCut cut{is_literal ? literal_pattern(text) : text, read_behaviour(step["behavior"])};
    cut.is_inverted = step["invert"].boolean_or(false);
    cut.is_bytes = is_bytes();
    spec_->cuts.push_back(std::move(cut));
  }

  void read_digits(const JsonField& step) {
    const bool is_individual = step["individual_digits"].boolean_or(false);
    if (is_bytes()) {
      const char* pattern = is_individual ? patterns::kDigitSymbol : patterns::kDigitSymbols;
      spec_->cuts.push_back({pattern, Matches::kIsolated, false, true});
    } else {
      spec_->cuts.push_back({is_individual ? patterns::kDigit : patterns::kDigits});
    }
  }

  void read_byte_level(const JsonField& step) {
    if (step["add_prefix_space"].boolean_or(true)) {
      require_first(step);
      spec_->prefix.push_back({Kind::kPrependOnce, {}, " "});
    }
    require_text(step);
    if (step["use_regex"].boolean_or(true)) spec_->cuts.push_back({patterns::kGpt2});
    spec_->spelling = Spelling::kByteSymbols;
  }

  void read_metaspace(const JsonField& step) {
    require_first(step);
    const std::string replacement =
        step["replacement"].is_null() ? std::string(kMetaspace) : step["replacement"].string();
    if (replacement != kMetaspace) {
      step.fail(ErrorCode::kUnsupported, "has replacement {}, must be U+2581", kivi::quoted(replacement));
    }
    spec_->prefix.push_back({Kind::kReplace, " ", replacement});
    const std::string scheme = !step["prepend_scheme"].is_null()           ? step["prepend_scheme"].string()
                               : step["add_prefix_space"].boolean_or(true) ? "always"
                                                                           : "never";
    if (scheme != "always" && scheme != "first" && scheme != "never") {
      step.fail(ErrorCode::kUnsupported, "has prepend_scheme {}, must be always, first or never", kivi::quoted(scheme));
    }
    if (scheme != "never") spec_->prefix.push_back({Kind::kPrependOnce, {}, replacement, scheme == "first"});
    if (step["split"].boolean_or(true)) spec_->cuts.push_back({replacement, Matches::kWithNext});
  }

  TokenizerSpec* spec_;
};

}  // namespace

void read_normaliser(const JsonField& normaliser, TokenizerSpec& spec) {
  if (normaliser.is_null()) return;
  const std::string& type = normaliser["type"].string();
  if (type == "Sequence") {
    const JsonField normalisers = normaliser["normalizers"];
    for (size_t i = 0; i < normalisers.array().size(); ++i) read_normaliser(normalisers[i], spec);
  } else if (type == "NFC") {
    spec.normaliser.push_back({Kind::kNfc});
  } else if (type == "NFKC") {
    spec.normaliser.push_back({Kind::kNfkc});
  } else if (type == "Prepend") {
    spec.normaliser.push_back({Kind::kPrepend, {}, normaliser["prepend"].string()});
  } else if (type == "Replace") {
    if (!normaliser["pattern"]["Regex"].is_null()) {
      normaliser.fail(ErrorCode::kUnsupported, "replaces a regular expression: not supported");
    }
    const std::string& from = normaliser["pattern"]["String"].string();
    if (from.empty()) normaliser["pattern"].fail(ErrorCode::kCorrupt, "is empty");
    spec.normaliser.push_back({Kind::kReplace, from, normaliser["content"].string()});
  } else {
    normaliser.fail(ErrorCode::kUnsupported, "has type {}, must be one of Sequence, NFC, NFKC, Prepend, Replace",
                    kivi::quoted(type));
  }
}

void read_pretokeniser(const JsonField& pretokeniser, TokenizerSpec& spec) {
  spec.spelling = Spelling::kText;
  if (!pretokeniser.is_null()) StepReader(spec).read(pretokeniser);
}

}  // namespace kivi
