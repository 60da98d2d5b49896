// Where the time of a decode step goes: each kind of operation by itself, the step as one recording, and the step as
// the engine runs it.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <nlohmann/json_fwd.hpp>
#include <span>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "cache/kv_config.h"
#include "engine/engine.h"
#include "model/decoder.h"

namespace kivi {

struct StepResult {
  struct Part {
    std::string operation;
    int64_t n_calls = 0;
    double microseconds = 0;  // of all of them, one after the other, nothing between
  };
  std::string kv{};
  int64_t batch = 0;
  int64_t tokens = 0;              // of a sequence, on average
  double step_microseconds = 0;    // from one step of the engine to the next: tables, launch, ids that come back
  double device_microseconds = 0;  // of the step's operations as one recording, with others before and after it
  double launch_microseconds = 0;  // of the smallest operation there is, in a recording of such
  int64_t n_launches = 0;          // of the step's recording; of its operations where nothing is recorded
  std::vector<Part> parts{};       // the longest first

  // Most that a step can spend outside its operations: between recordings, and between operations no more than as many
  // of the smallest ones take.
  double outside_microseconds() const {
    return std::max(0.0, step_microseconds - device_microseconds) +
           static_cast<double>(n_launches) * launch_microseconds;
  }
};

struct StepOptions {
  std::vector<KvConfig> kv{};  // at least one
  int64_t batch = 64;
  int64_t tokens = 0;
  EngineOptions engine{};  // memory; the rest follows from what is above
  int64_t n_steps = 32;    // of the engine, at least
  int n_samples = 5;
  double sample_seconds = 0.02;
  std::function<void(const StepResult&)> on_result{};
};

// Lengths are spread over the cycle in which windows are packed, and times are those of the average step. What
// sequences hold is not computed: caches and activations are as they come. Throws Error{kOutOfMemory} if the batch does
// not fit.
std::vector<StepResult> bench_step(Backend& backend, Decoder& decoder, const StepOptions& options);

// [{"kv","batch","tokens","step_us","device_us","operations":[{"operation","calls","us","share"}],"launches",
//   "launch_us","outside_us","outside_share"}]
nlohmann::ordered_json to_json(std::span<const StepResult> results);

}  // namespace kivi
