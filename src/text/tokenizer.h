// Text to token ids and back. The vocabulary comes from the model file; io or model fills the spec.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace kivi {

using TokenId = int32_t;

// What a model file says about its tokenizer (GGUF: tokenizer.ggml.*).
struct TokenizerSpec {
  enum class TokenType : uint8_t { kNormal = 1, kUnknown = 2, kControl = 3, kUserDefined = 4, kUnused = 5, kByte = 6 };

  std::string model;                // "gpt2": byte-level BPE
  std::string pre;                  // pre-tokeniser: "smollm", "qwen2", "llama-bpe", "gpt-2"; others fall back to gpt-2
  std::vector<std::string> tokens;  // by id, in the byte-level alphabet
  std::vector<TokenType> types;     // by id; empty: all normal
  std::vector<std::string> merges;  // "left right", best first
  std::optional<TokenId> bos, eos, pad;
  bool add_bos = false;
  std::string chat_template;  // Jinja source, used to recognise the chat format; may be empty
};

class Tokenizer {
 public:
  virtual ~Tokenizer() = default;

  // Ids of `text`. With parse_special, control tokens spelled in the text ("<|im_end|>") become their id; without, they
  // are plain text (user input must never forge a turn). User-defined tokens are always parsed. With add_bos, the BOS
  // id goes first if the model wants one. Invalid UTF-8 is tokenised byte by byte; decode() gives the same bytes back,
  // but "qwen2" text in NFC, and without the bytes that the vocabulary has no token for (SmolLM2: 21 that are rare or
  // never in UTF-8; its own tokenizer drops them too). Thread-safe. At most 512 MiB of text, else
  // Error{kInvalidArgument}.
  virtual std::vector<TokenId> encode(std::string_view text, bool add_bos, bool parse_special) const = 0;

  // The bytes of one token; empty for control and unused tokens unless show_special. Throws Error{kInvalidArgument} on
  // an id that is not in the vocabulary.
  virtual std::string token_bytes(TokenId id, bool show_special = false) const = 0;
  std::string decode(std::span<const TokenId> ids, bool show_special = false) const;

  virtual int32_t vocab_size() const = 0;
  virtual std::optional<TokenId> find(std::string_view token) const = 0;  // a token by its exact text
  virtual std::optional<TokenId> bos() const = 0;
  virtual std::optional<TokenId> eos() const = 0;
  // Ids that end a turn: eos, and the control tokens that end a turn or a text in the chat formats ("<|im_end|>",
  // "<|endoftext|>", "<|eot_id|>", "</s>" ...) when the vocabulary has them.
  virtual const std::vector<TokenId>& end_ids() const = 0;
};

// Throws Error{kUnsupported} for a tokenizer model that kivi does not have, Error{kCorrupt} for a broken vocabulary.
std::unique_ptr<Tokenizer> make_tokenizer(TokenizerSpec spec);

}  // namespace kivi
