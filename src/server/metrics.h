// What the server counts, under the names that dashboards and routers for vLLM read, and kivi's own. Thread-safe.
#pragma once

#include <memory>
#include <string>

#include "engine/request.h"
#include "server/engine_thread.h"

namespace kivi {

struct MetricLabels {
  std::string model_name{};
  std::string cache_dtype{};  // the preset: "kivi2"
  int64_t block_size = 0;     // tokens of a packed page
  int64_t n_blocks = 0;       // pages that the cache has room for
};

class Metrics {
 public:
  explicit Metrics(const MetricLabels& labels);
  ~Metrics();

  void set(const EngineSnapshot& engine);
  // A request that was answered by the engine: its prompt and first token, each further one, and its end.
  void first_token(int64_t n_prompt, double seconds_since_arrival);
  void next_token(double seconds_since_last);
  void finished(const std::string& reason, double seconds_since_arrival, double queue_seconds);
  void refused_for_queue();
  void written(double seconds_since_ready);

  std::string text() const;  // Prometheus's text format, version 0.0.4

 private:
  struct Families;
  std::unique_ptr<Families> families_;
};

}  // namespace kivi
