// libFuzzer: whatever the bytes of tokenizer.json or tokenizer.model, they either give an Error of one line or a
// tokenizer that encodes and decodes.
#include <cstdio>
#include <cstdlib>
#include <string_view>

#include "model/sentencepiece_model.h"
#include "model/tokenizer_json.h"
#include "text/detokenizer.h"
#include "text/tokenizer.h"
#include "text/unicode.h"

namespace {

using kivi::TokenId;

void require(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "does not hold: %s\n", what);
  std::abort();
}

kivi::TokenizerSpec parse(bool is_json, std::string_view bytes) {
  if (!is_json) return kivi::parse_sentencepiece_model(std::as_bytes(std::span(bytes)), "memory");
  const nlohmann::json value = nlohmann::json::parse(bytes, nullptr, false);
  return kivi::parse_tokenizer_json({value.is_discarded() ? nlohmann::json() : value, "memory"});
}

void check(const kivi::Tokenizer& tokenizer, std::string_view text) {
  kivi::StreamDetokenizer detokenizer(tokenizer);
  for (const bool parse_special : {false, true}) {
    for (const TokenId id : tokenizer.encode(text, true, parse_special)) {
      require(id >= 0 && id < tokenizer.vocab_size(), "ids are in the vocabulary");
      const std::string shown = detokenizer.add(id);
      require(kivi::valid_utf8_prefix(shown) == shown.size(), "streamed text is UTF-8");
    }
  }
}

}  // namespace

// The first byte says what the rest is.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const std::string_view bytes(reinterpret_cast<const char*>(data) + 1, size - 1);
  try {
    const auto tokenizer = kivi::make_tokenizer(parse(data[0] % 2 == 0, bytes));
    check(*tokenizer, "Hello  world, 12345\n\xE2\x96\x81\xC3\xA9\xFF<s>");
    check(*tokenizer, bytes.substr(0, 200));
  } catch (const kivi::Error& error) {
    require(std::string_view(error.what()).find('\n') == std::string_view::npos, "an error is one line");
  }
  return 0;
}
