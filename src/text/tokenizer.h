// Text to token ids and back.
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "text/tokenizer_spec.h"

namespace kivi {

class Tokenizer {
 public:
  virtual ~Tokenizer() = default;

  // Ids of `text`. With parse_special, control tokens spelled in the text ("<|im_end|>") become their id; without, they
  // are plain text (user input must never forge a turn). User-defined tokens are always parsed. With add_bos, the BOS
  // id goes first if the model wants one. Invalid UTF-8 is tokenised byte by byte. decode() gives the same bytes back,
  // but for what the normaliser changes ("qwen2" text is in NFC, U+2581 is a space to SentencePiece, which also has a
  // space before all that follows a control token), and without the bytes that the vocabulary has no token for
  // (SmolLM2: 21 that are rare or never in UTF-8; its own tokenizer drops them too). Thread-safe. At most 512 MiB of
  // text, else Error{kInvalidArgument}; Error{kUnsupported} where a pattern of the model's file takes too many steps on
  // it.
  virtual std::vector<TokenId> encode(std::string_view text, bool add_bos, bool parse_special) const = 0;
  // The ids of plain text that other tokens stand before: no BOS, no control tokens.
  virtual std::vector<TokenId> encode_after(std::string_view text) const { return encode(text, false, false); }

  // The bytes of one token; empty for control and unused tokens unless show_special. Throws Error{kInvalidArgument} on
  // an id that is not in the vocabulary.
  virtual std::string token_bytes(TokenId id, bool show_special = false) const = 0;
  // The text of tokens that begin a text.
  std::string decode(std::span<const TokenId> ids, bool show_special = false) const;
  // Whether the first token that shows has a space in front that is not of the text (SentencePiece).
  virtual bool begins_with_space() const { return false; }

  virtual int32_t vocab_size() const = 0;
  virtual std::optional<TokenId> find(std::string_view token) const = 0;  // a token by its exact text
  virtual std::optional<TokenId> bos() const = 0;
  // What encode() puts first with add_bos: the BOS id of a model that wants one.
  std::optional<TokenId> begin_of_text() const;
  virtual std::optional<TokenId> eos() const = 0;
  // Whether a control token takes the white space that is behind it in the text (Phi-3).
  virtual bool takes_space_after(TokenId /*id*/) const { return false; }
  // Ids that end a turn: eos, what else the file says, and the control tokens that end a turn or a text in the chat
  // formats ("<|im_end|>", "<|endoftext|>", "<|eot_id|>", "</s>" ...) when the vocabulary has them.
  virtual const std::vector<TokenId>& end_ids() const = 0;
};

// Throws Error{kCorrupt} for a broken vocabulary, Error{kUnsupported} for a pattern that kivi cannot run.
std::unique_ptr<Tokenizer> make_tokenizer(TokenizerSpec spec);

}  // namespace kivi
