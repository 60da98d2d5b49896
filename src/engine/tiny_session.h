// A small random model, for tests of what runs models; on the reference backend if no other is given.
#pragma once

#include <memory>
#include <vector>

#include "cache/kv_cache.h"
#include "engine/sampler.h"
#include "io/gguf.h"
#include "model/decoder.h"
#include "model/tiny_model.h"

namespace kivi {

struct TinySession {
  TinySession() = default;
  explicit TinySession(std::unique_ptr<Backend> other) : backend(std::move(other)) {}
  TinySession(std::unique_ptr<Backend> other, std::vector<std::byte> model)
      : file(std::move(model)), backend(std::move(other)) {}

  std::vector<std::byte> file = TinyModel{}.build().build();
  ModelFile gguf = read_gguf(std::span<const std::byte>(file));
  ModelConfig config = read_config(gguf);
  std::unique_ptr<Backend> backend = make_backend({.device = "reference", .n_threads = 1});
  ModelWeights weights = load_weights(*backend, gguf, config);
  Decoder decoder{*backend, weights};

  std::vector<TokenId> random_tokens(int64_t n, uint32_t seed) const {
    std::mt19937 random(seed);
    std::vector<TokenId> tokens(static_cast<size_t>(n));
    for (TokenId& token : tokens) token = static_cast<TokenId>(random() % static_cast<uint32_t>(config.vocab_size));
    return tokens;
  }

  // Greedy continuation of a prompt, without the engine.
  std::vector<TokenId> continue_greedily(const KvConfig& kv, std::vector<TokenId> input, int64_t n) {
    KvCache cache(*backend, decoder.kv_shape(), kv, {.max_tokens = static_cast<int64_t>(input.size()) + n});
    const SequenceId id = cache.create();
    std::vector<TokenId> output;
    while (static_cast<int64_t>(output.size()) < n) {
      const StepSequence entry{.id = id, .n_new = static_cast<int32_t>(input.size())};
      const int32_t last_row = entry.n_new - 1;
      if (!cache.reserve({&entry, 1})) return {};
      const auto logits = decoder.step(cache, {.tokens = input, .logit_rows = {&last_row, 1}}).logits;
      input = {argmax({logits.data, static_cast<size_t>(logits.size())})};
      output.push_back(input.front());
    }
    return output;
  }
};

// Groups and windows short enough that a test packs.
inline KvConfig small_kivi2() {
  return parse_kv_config("kivi2:group-size=16:residual=16");
}

}  // namespace kivi
