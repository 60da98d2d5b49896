// What is in a model's KV cache, what quantising it costs, and which preset to use: everything that `kivi study`
// reports.
#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "cache/kv_config.h"
#include "core/progress.h"
#include "model/decoder.h"

namespace kivi {

// What runs the model. Keys and values are looked at, and settings that the packed format does not have are measured,
// in the memory of the host: on `host`, which may be `device`.
struct StudyDevice {
  Backend* backend = nullptr;
  Decoder* decoder = nullptr;
};

struct StudyInput {
  StudyDevice device;
  StudyDevice host;
  std::string program_version;
  std::string model_sha256;
  std::string text_sha256;
  std::span<const TokenId> tokens;       // of the text
  std::optional<TokenId> first_token{};  // PerplexityOptions
};

struct StudyOptions {
  std::vector<KvConfig> presets{};  // to choose from; at least one
  bool is_quick = false;
  int64_t n_tokens = 0;       // of the text, at most; 0: 16384, or 3072 if quick
  int64_t context = 0;        // tokens of a chunk; 0: 2048, or 768 if quick, less for a text that makes no four of them
  std::vector<int> layers{};  // whose magnitudes are mapped; empty: four, spread evenly
  std::vector<int> heads{};   // KV heads, likewise; empty: the first
  double max_loss = 0.01;     // of perplexity, relative
  int64_t memory_bytes = int64_t{8} << 30;  // of a KV cache whose context is told
  ProgressCallback progress{};
};

// How a text is cut: n_chunks of `context` tokens from its beginning.
struct ChunkPlan {
  int64_t context = 0;
  int64_t n_chunks = 0;
};
// Throws Error{kInvalidArgument} if the text is too short.
ChunkPlan plan_chunks(int64_t n_text_tokens, int64_t model_context, const StudyOptions& options);

// Throws Error{kInvalidArgument} for options that contradict each other or the model, Error{kUnsupported} for heads
// that the packed format does not take.
void check_study(const ModelConfig& model, const StudyOptions& options);

// The study as JSON (docs/study.md). Parts that are done are kept in `folder`, and taken up from there by a study of
// the same model, text, chunks, device and version.
nlohmann::ordered_json run_study(const StudyInput& input, const StudyOptions& options,
                                 const std::filesystem::path& folder);

}  // namespace kivi
