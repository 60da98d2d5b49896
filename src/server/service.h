// What is served: from an HTTP request to the engine and back. Three threads:
//
//   loop    HTTP, and all that belongs to a request that is under way (Generation): never blocks
//   worker  reads bodies, tokenises prompts, prints large answers
//   engine  EngineThread: runs steps
//
//   request -> [loop] route, key, queue -> [worker] parse, tokenise -> [loop] Generation -> [engine] steps
//           -> one batch of events a step -> [loop] text, stop strings, JSON -> the client's stream
//
// All state is the loop's; the others are handed values and post values back.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "engine/engine.h"
#include "server/api_error.h"
#include "server/engine_thread.h"
#include "server/generation.h"
#include "server/http_server.h"
#include "server/metrics.h"
#include "server/served_model.h"
#include "server/task_thread.h"

namespace kivi {

struct ServiceOptions {
  std::string api_key{};  // empty: none is asked for
  // Origins of pages that may use the server from a browser, beside its own; "*": all.
  std::vector<std::string> allowed_origins{};
  int64_t max_queue = 256;  // requests beyond those that the batch has places for
};

class Service {
 public:
  using PostToLoop = std::function<void(std::function<void()>)>;

  // The engine must outlive the service. `post` may be called from any thread, and its tasks run one after another.
  Service(Engine& engine, ServedModel model, ServiceOptions options, PostToLoop post);
  // On no other thread than the loop, or after it has ended.
  ~Service();

  // From the loop, as all that follows.
  void handle(HttpRequest request, std::shared_ptr<HttpExchange> exchange);
  // Takes no more work; calls `done` when the last request has ended.
  void drain(std::function<void()> done);
  // Ends all requests; their clients are told.
  void cancel_all();

  Metrics& metrics() { return metrics_; }
  int64_t n_live() const { return static_cast<int64_t>(live_.size()); }

 private:
  struct Client;
  using Respond = void (Service::*)(const HttpRequest&, Client);
  struct Route {
    const char* method;
    const char* path;
    bool needs_key;
    Respond respond;
  };
  struct Live {
    std::shared_ptr<Generation> generation;
    size_t choice_idx = 0;
  };

  static const std::vector<Route>& routes();
  void dispatch(const HttpRequest& request, Client client);
  bool may_come_from(const HttpRequest& request, Client& client) const;
  bool has_key(const HttpRequest& request) const;

  void health(const HttpRequest& request, Client client);
  void version(const HttpRequest& request, Client client);
  void metrics_text(const HttpRequest& request, Client client);
  void page(const HttpRequest& request, Client client);
  void models(const HttpRequest& request, Client client);
  void tokenizer_info(const HttpRequest& request, Client client);
  void tokenize_text(const HttpRequest& request, Client client);
  void detokenize_ids(const HttpRequest& request, Client client);
  void completion(const HttpRequest& request, Client client);
  void chat(const HttpRequest& request, Client client);

  void in_background(std::function<std::string()> make, Client client);
  void generate(const HttpRequest& request, Client client, GenerationCall (*parse)(std::string_view));
  void start(GenerationCall call, std::vector<Request> requests, Client client,
             std::chrono::steady_clock::time_point arrival);
  bool has_places(int64_t n) const;
  void deliver(EventBatch batch);
  void end_if_drained();
  std::string random_id();

  ServedModel model_;
  ServiceOptions options_;
  PostToLoop post_;
  int64_t max_live_;
  Metrics metrics_;
  std::mt19937_64 random_{std::random_device{}()};
  std::unordered_map<RequestId, Live> live_;
  int64_t n_reading_ = 0;  // requests that the worker has
  std::function<void()> drained_;
  bool draining_ = false;
  TaskThread worker_{"kivi-text"};
  EngineThread engine_;  // the last one: its events need all the others
};

}  // namespace kivi
