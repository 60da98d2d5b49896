// kivi serve: an OpenAI-compatible server.
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>

#include "commands.h"
#include "core/environment.h"
#include "core/error.h"
#include "options.h"
#include "output.h"
#include "server/server.h"

namespace kivi::app {
namespace {

// Prompt tokens of a step, and so the time that a long prompt holds others up.
constexpr int64_t kCpuStepTokens = 512;
constexpr int64_t kDeviceStepTokens = 2048;
constexpr double kHostFraction = 0.5;  // of the memory that the host has left, for the cache

struct ServeCommand {
  ModelOptions model;
  KvOptions kv{{std::string(kDefaultKvPreset)}};
  MemoryOptions memory;
  ServerOptions server;
  std::string served_name;
  std::optional<std::string> api_key;
  int max_num_seqs = 256;
  std::optional<int64_t> max_model_len;
  std::optional<int64_t> step_tokens;
  bool reuses_prefixes = true;
  double shutdown_seconds = 30;

  void run();
  EngineOptions engine_options(const Session& session, const KvConfig& kv_config) const;
  int64_t context(const Session& session) const;
  std::string name() const;
};

int64_t host_memory_bytes() {
  return static_cast<int64_t>(sysconf(_SC_AVPHYS_PAGES)) * sysconf(_SC_PAGESIZE);
}

int64_t ServeCommand::context(const Session& session) const {
  const int64_t longest = session.model->config.context_length;
  if (max_model_len && *max_model_len > longest) {
    fail(ErrorCode::kInvalidArgument, "--max-model-len {}: the model's context is {}; use at most that", *max_model_len,
         longest);
  }
  return max_model_len.value_or(longest);
}

EngineOptions ServeCommand::engine_options(const Session& session, const KvConfig& kv_config) const {
  const bool is_host = session.backend->free_bytes() == 0;
  EngineOptions options{.kv = kv_config,
                        .capacity = {.max_tokens = context(session), .max_sequences = max_num_seqs},
                        .max_step_tokens = step_tokens.value_or(is_host ? kCpuStepTokens : kDeviceStepTokens),
                        .reuse_prefixes = reuses_prefixes};
  memory.apply_to(options, *session.backend);
  if (is_host && options.capacity.memory_bytes == 0) {
    const KvShape shape = session.decoder->kv_shape();
    const SlabLayout layout = slab_layout(shape, kv_config);
    const auto n_most = static_cast<int64_t>(kHostFraction * static_cast<double>(host_memory_bytes()));
    // As much as all sequences can need, if that is less.
    const KvPages needed = max_num_seqs * most_pages_of(shape, kv_config, options.capacity.max_tokens);
    const int64_t n_needed = layout.n_slabs(needed) * layout.slab_bytes;
    if (n_needed > n_most) options.capacity.memory_bytes = n_most;
  }
  return options;
}

std::string ServeCommand::name() const {
  return served_name.empty() ? std::filesystem::path(model.path).stem().string() : served_name;
}

void ServeCommand::run() {
  const KvConfig kv_config = kv.parse().front();
  server.service.api_key = api_key.value_or(environment::api_key().value_or(""));
  server.shutdown_timeout = HttpOptions::Seconds(shutdown_seconds);
  server.handles_signals = true;
  Server listening(server);
  const auto start = std::chrono::steady_clock::now();
  fmt::print(stderr, "kivi: loading {} ...\n", model.path);
  const Session session = model.load({&kv_config, 1});
  Engine engine(*session.backend, *session.decoder, engine_options(session, kv_config));
  engine.warm_up();
  const KvCache& cache = engine.cache();
  const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
  fmt::print(stderr, "kivi: loaded in {:.1f} s on {}; KV cache {} of {}, {} sequences of up to {} tokens\n",
             elapsed.count(), session.backend->info().detail, kv_config.name, format_bytes(cache.capacity_bytes()),
             cache.capacity().max_sequences, cache.capacity().max_tokens);
  int64_t longest = cache.capacity().max_tokens;
  while (longest > 1 && !cache.can_ever_hold(longest)) --longest;
  listening.open(engine, describe(*session.model, name(), longest));
  fmt::print(stderr, "kivi: serving {} at http://{}:{}\n", name(), server.http.host, listening.port());
  listening.wait();
}

}  // namespace

void add_serve(CLI::App& app) {
  auto command = std::make_shared<ServeCommand>();
  CLI::App* serve = app.add_subcommand("serve", "Serve the model with OpenAI's HTTP API, and a chat page");
  command->model.add_to(*serve);
  command->kv.add_one_to(*serve);
  command->memory.add_to(*serve);
  const auto add = [serve](const char* name, auto& value, const char* help, const char* type) {
    return serve->add_option(name, value, help)->capture_default_str()->type_name(type);
  };
  ServerOptions& server = command->server;
  add("--host", server.http.host, "Address to listen at; 0.0.0.0: all of this machine", "ADDRESS");
  add("--port", server.http.port, "Port to listen at; 0: any that is free", "N")->check(CLI::Range(0, 65535));
  add("--served-model-name", command->served_name, "Name of the model in the API; default: the file's name", "NAME");
  add("--api-key", command->api_key, "Key that requests must send; default: $KIVI_API_KEY, or none", "KEY");
  add("--max-num-seqs", command->max_num_seqs, "Requests that run at a time, at most", "N")
      ->check(CLI::Range(1, 65536));
  add("--max-queue", server.service.max_queue, "Requests that wait beyond those, at most; more are answered 503", "N")
      ->check(CLI::Range(int64_t{0}, int64_t{1} << 20));
  add("--max-model-len", command->max_model_len, "Tokens of prompt and output; default: the model's context", "N")
      ->check(CLI::Range(int64_t{2}, int64_t{1} << 40));
  serve
      ->add_option("--step-tokens", command->step_tokens,
                   fmt::format("Prompt tokens of a step; a longer prompt runs in chunks of this, between which others "
                               "go on; default: {}, on a GPU {}",
                               kCpuStepTokens, kDeviceStepTokens))
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 20))
      ->type_name("N");
  serve->add_flag("--enable-prefix-caching,!--no-enable-prefix-caching", command->reuses_prefixes,
                  "Prompts that begin alike share what the cache has of them (default); outputs are the same without");
  serve
      ->add_option("--allowed-origins", server.service.allowed_origins,
                   "Origins of web pages that may use the server, as https://example.org; *: all; default: its own")
      ->delimiter(',')
      ->type_name("O1,O2,...");
  add("--shutdown-timeout", command->shutdown_seconds, "Seconds that running requests get when the server is to end",
      "X")
      ->check(CLI::Range(0.0, 86400.0));
  serve->callback([command] { command->run(); });
}

}  // namespace kivi::app
