#include "text/normaliser.h"

#include "text/unicode.h"

namespace kivi {
namespace {

std::string replaced(std::string_view text, std::string_view from, std::string_view to) {
  std::string out;
  out.reserve(text.size());
  for (;;) {
    const size_t at = from.empty() ? std::string_view::npos : text.find(from);
    out += text.substr(0, at);
    if (at == std::string_view::npos) return out;
    out += to;
    text.remove_prefix(at + from.size());
  }
}

std::string collapsed(std::string_view text) {
  std::string out;
  for (const char c : text) {
    if (c != ' ' || (!out.empty() && out.back() != ' ')) out += c;
  }
  if (out.ends_with(' ')) out.pop_back();
  return out;
}

// `form` of what is valid UTF-8; the other bytes stay.
std::string in_form(std::string_view bytes, std::string (*form)(std::string_view)) {
  std::string out;
  while (!bytes.empty()) {
    const size_t n_valid = valid_utf8_prefix(bytes);
    out += form(bytes.substr(0, n_valid));
    bytes.remove_prefix(n_valid);
    out += bytes.substr(0, 1);
    bytes.remove_prefix(bytes.empty() ? 0 : 1);
  }
  return out;
}

std::string changed(const TextChange& change, std::string_view text) {
  using Kind = TextChange::Kind;
  switch (change.kind) {
    case Kind::kNfc:
      return in_form(text, nfc);
    case Kind::kNfkc:
      return in_form(text, nfkc);
    case Kind::kReplace:
      return replaced(text, change.from, change.to);
    case Kind::kPrependOnce:
      if (text.starts_with(change.to)) break;
      [[fallthrough]];
    case Kind::kPrepend:
      if (!text.empty()) return std::string(change.to).append(text);
      break;
    case Kind::kCollapseSpaces:
      return collapsed(text);
  }
  return std::string(text);
}

}  // namespace

std::string_view Normaliser::apply(std::string_view text, bool is_first, std::string& storage) const {
  for (const TextChange& change : changes_) {
    if (change.first_only && !is_first) continue;
    storage = changed(change, text);
    text = storage;
  }
  return text;
}

}  // namespace kivi
