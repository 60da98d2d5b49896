// Pre-tokenisation: text cut into the pieces that byte-pair merges never cross.
#pragma once

#include <functional>
#include <memory>
#include <string_view>

namespace kivi {

class Pretokenizer {
 public:
  using PieceFunction = std::function<void(std::string_view piece)>;

  // `name` as in GGUF's tokenizer.ggml.pre: "smollm", "qwen2", "llama-bpe" or "gpt-2"; any other name is taken as
  // "gpt-2".
  explicit Pretokenizer(std::string_view name);
  ~Pretokenizer();

  // Calls on_piece for every piece of `bytes`, in order; the view is valid during the call. A byte that is not part of
  // valid UTF-8 is a piece of its own. The pieces joined are `bytes`, or its NFC where the model normalises.
  // Thread-safe.
  void split(std::string_view bytes, const PieceFunction& on_piece) const;

  // A piece that is in the vocabulary is one token, whatever the merges say (Llama 3).
  bool keeps_known_pieces() const { return keeps_known_pieces_; }

 private:
  struct Pattern;  // the compiled regular expression

  std::unique_ptr<const Pattern> pattern_;
  bool normalises_ = false;
  bool keeps_known_pieces_ = false;
};

}  // namespace kivi
