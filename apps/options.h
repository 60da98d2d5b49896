// Options that subcommands share, and what they make of them.
#pragma once

#include <CLI/CLI.hpp>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "cache/kv_config.h"
#include "engine/engine.h"
#include "engine/sampler.h"
#include "model/decoder.h"
#include "model/model.h"

namespace kivi::app {

// A model ready to run.
struct Session {
  std::unique_ptr<Backend> backend;
  std::unique_ptr<Model> model;
  std::unique_ptr<Decoder> decoder;
  int64_t free_bytes_at_start = 0;  // before the weights; 0 where the backend does not say
  int64_t weight_bytes = 0;         // on the backend
};

// {"device","device_detail","dtype","model","model_quantisation","random_weights"}
nlohmann::ordered_json describe(const Session& session);

// --device, --threads and --dtype.
void add_device_options(CLI::App& app, BackendOptions& options);

// --samples, of which a measurement takes the median.
void add_samples_option(CLI::App& app, int& n_samples);

struct ModelOptions {
  std::string path;
  std::string random_shape;  // instead of a file
  BackendOptions backend;

  void add_to(CLI::App& app);
  void add_random_to(CLI::App& app);  // --random-weights, for what needs no text
  bool is_random() const { return !random_shape.empty(); }
  std::unique_ptr<Model> open() const;  // without weights
  // Throws Error{kUnsupported} before it loads anything if the device has no kernels for one of the caches.
  Session load(std::span<const KvConfig> caches) const;

 private:
  CLI::Option* path_option_ = nullptr;
};

// How much memory an engine may take: --memory-fraction and --kv-memory.
class MemoryOptions {
 public:
  void add_to(CLI::App& app);
  // Throws Error{kInvalidArgument} for a fraction on a device that does not say what is free.
  void apply_to(EngineOptions& options, Backend& backend) const;

 private:
  std::optional<double> fraction_;
  double kv_gib_ = 0.0;
};

// --kv and the options that change fields of its presets.
class KvOptions {
 public:
  // `presets` are the defaults.
  explicit KvOptions(std::vector<std::string> presets) : presets_(std::move(presets)) {}
  static std::vector<std::string> every_preset();

  void add_to(CLI::App& app);      // --kv P1,P2,...
  void add_one_to(CLI::App& app);  // --kv PRESET
  // Throws Error{kInvalidArgument}. The options apply to every preset of the list that packs.
  std::vector<KvConfig> parse() const;

 private:
  void add_fields_to(CLI::App& app);

  std::vector<std::string> presets_;
  std::string settings_;  // ":FIELD=VALUE" for each option given
};

// How tokens are chosen: llama.cpp's filters as defaults, but greedy unless a temperature is given, so that answers of
// different caches can be compared.
class SamplingOptions {
 public:
  void add_to(CLI::App& app);
  // Throws Error{kInvalidArgument}. Draws a seed if none was given.
  SamplingParams parse() const;

 private:
  SamplingParams params_{.top_k = 40, .top_p = 0.95, .min_p = 0.05};
  std::optional<uint64_t> seed_;
};

std::string read_text_file(const std::string& path);

}  // namespace kivi::app
