#include "server/service.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "server/embedded.h"
#include "server/json_fields.h"
#include "server/secret.h"

namespace kivi {
namespace {

using Json = nlohmann::ordered_json;

constexpr size_t kMostRequestIdBytes = 128;
constexpr std::string_view kModelPath = "/v1/models/";

MetricLabels labels_of(const Engine& engine, const ServedModel& model) {
  const KvCache& cache = engine.cache();
  const bool is_packed = cache.config().is_packed();
  const KvPages& page_bytes = cache.arena().layout().page_bytes;
  int64_t block_bytes = 0;  // of all layers
  for (int group = 0; group < format::kMostLayerGroups; ++group) {
    block_bytes += is_packed ? page_bytes[packed_pages(group)] : 2 * page_bytes[window_pages(group)];
  }
  return {.model_name = model.name,
          .cache_dtype = cache.config().name,
          .block_size = is_packed ? format::kPageTokens : format::kWindowPageTokens,
          .n_blocks = cache.capacity_bytes() / block_bytes};
}

Json model_json(const ServedModel& model) {
  return {{"id", model.name},
          {"object", "model"},
          {"created", model.created},
          {"owned_by", "kivi"},
          {"root", model.name},
          {"parent", nullptr},
          {"max_model_len", model.max_model_len}};
}

ApiError not_found(const std::string& what) {
  return {.status = 404, .message = what + ": is not here; GET /openapi.json lists what is"};
}

}  // namespace

// The answer to one request, with the headers that all answers have.
struct Service::Client {
  std::shared_ptr<HttpExchange> exchange{};
  std::vector<HttpHeader> headers{};

  void respond(HttpResponse response) const {
    response.headers.insert(response.headers.end(), headers.begin(), headers.end());
    exchange->respond(std::move(response));
  }
  void respond(const ApiError& error) const { respond(error.response()); }
  void respond(const Json& json) const { respond(HttpResponse{.body = dump(json)}); }
};

Service::Service(Engine& engine, ServedModel model, ServiceOptions options, PostToLoop post)
    : model_(std::move(model)),
      options_(std::move(options)),
      post_(std::move(post)),
      max_live_(engine.cache().capacity().max_sequences + options_.max_queue),
      metrics_(labels_of(engine, model_)),
      engine_(engine, [this](EventBatch batch) {
        post_([this, shared = std::make_shared<EventBatch>(std::move(batch))] { deliver(std::move(*shared)); });
      }) {}

Service::~Service() = default;

const std::vector<Service::Route>& Service::routes() {
  static const std::vector<Route> routes = {
      {"GET", "/", false, &Service::page},
      {"GET", "/page.css", false, &Service::page},
      {"GET", "/page.js", false, &Service::page},
      {"GET", "/openapi.json", false, &Service::page},
      {"GET", "/health", false, &Service::health},
      {"GET", "/version", false, &Service::version},
      {"GET", "/metrics", false, &Service::metrics_text},
      {"GET", "/v1/models", true, &Service::models},
      {"GET", "/tokenizer_info", true, &Service::tokenizer_info},
      {"POST", "/tokenize", true, &Service::tokenize_text},
      {"POST", "/detokenize", true, &Service::detokenize_ids},
      {"POST", "/v1/completions", true, &Service::completion},
      {"POST", "/v1/chat/completions", true, &Service::chat},
  };
  return routes;
}

void Service::handle(HttpRequest request, std::shared_ptr<HttpExchange> exchange) {
  const std::string_view asked_id = request.header("x-request-id");
  const bool is_usable = !asked_id.empty() && asked_id.size() <= kMostRequestIdBytes &&
                         std::ranges::all_of(asked_id, [](char c) { return c > ' ' && c < 0x7f; });
  Client client{.exchange = std::move(exchange)};
  client.headers.push_back({"x-request-id", is_usable ? std::string(asked_id) : random_id()});
  if (!may_come_from(request, client)) {
    client.respond(ApiError{.status = 403,
                            .message = fmt::format("origin '{}': not allowed; start the server with --allowed-origins",
                                                   request.header("origin"))});
    return;
  }
  if (request.method == "OPTIONS") {
    client.headers.push_back({"Allow", "GET, HEAD, POST, OPTIONS"});
    client.respond(HttpResponse{.status = 204, .content_type = ""});
    return;
  }
  dispatch(request, std::move(client));
}

// Pages of other origins may neither read answers nor make work, unless they are allowed to.
bool Service::may_come_from(const HttpRequest& request, Client& client) const {
  const std::string_view origin = request.header("origin");
  if (origin.empty()) return true;
  const auto is_allowed = [origin](const std::string& allowed) { return allowed == "*" || allowed == origin; };
  if (std::ranges::any_of(options_.allowed_origins, is_allowed)) {
    client.headers.push_back({"Access-Control-Allow-Origin", std::string(origin)});
    client.headers.push_back({"Access-Control-Expose-Headers", "x-request-id"});
    client.headers.push_back({"Vary", "Origin"});
    if (request.method == "OPTIONS") {
      client.headers.push_back({"Access-Control-Allow-Methods", "GET, POST"});
      client.headers.push_back({"Access-Control-Allow-Headers", "authorization, content-type, x-request-id"});
      client.headers.push_back({"Access-Control-Max-Age", "600"});
    }
    return true;
  }
  const std::string_view host = request.header("host");
  return origin.substr(std::min(origin.size(), origin.find("://") + 3)) == host;
}

bool Service::has_key(const HttpRequest& request) const {
  constexpr std::string_view kScheme = "bearer ";
  const std::string_view given = request.header("authorization");
  if (options_.api_key.empty()) return true;
  if (given.size() < kScheme.size()) return false;
  const bool is_bearer =
      std::ranges::equal(given.substr(0, kScheme.size()), kScheme, [](char a, char b) { return (a | 0x20) == b; });
  return is_bearer && equal_in_constant_time(given.substr(kScheme.size()), options_.api_key);
}

void Service::dispatch(const HttpRequest& request, Client client) {
  const std::string method = request.method == "HEAD" ? "GET" : request.method;
  const bool is_one_model = request.path.starts_with(kModelPath);
  const std::string path = is_one_model ? "/v1/models" : request.path;
  const Route* other_method = nullptr;
  for (const Route& route : routes()) {
    if (path != route.path) continue;
    if (method != route.method) {
      other_method = &route;
      continue;
    }
    if (route.needs_key && !has_key(request)) {
      client.respond(ApiError{.status = 401,
                              .message = "the API key is missing or wrong; send it as 'Authorization: Bearer KEY'",
                              .code = "invalid_api_key"});
      return;
    }
    (this->*route.respond)(request, std::move(client));
    return;
  }
  if (other_method == nullptr) {
    client.respond(not_found(request.path));
    return;
  }
  client.headers.push_back({"Allow", other_method->method});
  client.respond(ApiError{.status = 405,
                          .message = fmt::format("{} {}: the method must be {}", request.method.substr(0, 20),
                                                 request.path, other_method->method)});
}

void Service::health(const HttpRequest& /*request*/, Client client) {
  if (draining_) {
    client.respond(ApiError{.status = 503, .message = "the server is shutting down"});
  } else {
    client.respond(Json{{"status", "ok"}});
  }
}

void Service::version(const HttpRequest& /*request*/, Client client) {
  client.respond(Json{{"version", KIVI_VERSION}});
}

void Service::metrics_text(const HttpRequest& /*request*/, Client client) {
  client.respond(HttpResponse{.content_type = "text/plain; version=0.0.4; charset=utf-8", .body = metrics_.text()});
}

void Service::page(const HttpRequest& request, Client client) {
  const EmbeddedFile& file = embedded_file(request.path);
  client.headers.push_back({"Cache-Control", "no-cache"});
  client.headers.push_back({"X-Content-Type-Options", "nosniff"});
  client.headers.push_back({"Content-Security-Policy",
                            "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
                            "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"});
  client.respond(HttpResponse{.content_type = std::string(file.content_type), .body = std::string(file.content)});
}

void Service::models(const HttpRequest& request, Client client) {
  if (!request.path.starts_with(kModelPath)) {
    client.respond(Json{{"object", "list"}, {"data", Json::array({model_json(model_)})}});
  } else if (request.path.substr(kModelPath.size()) == model_.name) {
    client.respond(model_json(model_));
  } else {
    client.respond(ApiError{.status = 404,
                            .message = fmt::format("model '{}': is not served here; use '{}'",
                                                   request.path.substr(kModelPath.size()), model_.name),
                            .param = "model",
                            .code = "model_not_found"});
  }
}

void Service::tokenizer_info(const HttpRequest& /*request*/, Client client) {
  const auto text = [this](std::optional<TokenId> id) {
    return id ? Json(token_text(*model_.tokenizer, *id)) : Json();
  };
  client.respond(Json{{"tokenizer_class", "kivi"},
                      {"vocab_size", model_.tokenizer->vocab_size()},
                      {"model_max_length", model_.max_model_len},
                      {"bos_token", text(model_.tokenizer->bos())},
                      {"eos_token", text(model_.tokenizer->eos())},
                      {"pad_token", text(model_.pad)},
                      {"chat_template", model_.chat_template.empty() ? Json() : Json(model_.chat_template)}});
}

void Service::in_background(std::function<std::string()> make, Client client) {
  worker_.post([this, make = std::move(make), client = std::move(client)] {
    HttpResponse response;
    try {
      response.body = make();
    } catch (const ApiError& error) {
      response = error.response();
    } catch (const std::exception& error) {
      response = ApiError{.status = 500, .message = error.what()}.response();
    }
    post_([client, response = std::move(response)] { client.respond(response); });
  });
}

void Service::tokenize_text(const HttpRequest& request, Client client) {
  in_background(
      [this, body = request.body] {
        const std::vector<TokenId> ids = tokenize(parse_tokenize(body), model_);
        return dump({{"count", ids.size()}, {"max_model_len", model_.max_model_len}, {"tokens", ids}});
      },
      std::move(client));
}

void Service::detokenize_ids(const HttpRequest& request, Client client) {
  in_background(
      [this, body = request.body] {
        return dump({{"prompt", detokenize(parse_detokenize(body), model_)}});
      },
      std::move(client));
}

void Service::completion(const HttpRequest& request, Client client) {
  generate(request, std::move(client), parse_completion);
}

void Service::chat(const HttpRequest& request, Client client) {
  generate(request, std::move(client), parse_chat);
}

bool Service::has_places(int64_t n) const {
  return n_live() + n_reading_ + n <= max_live_;
}

void Service::generate(const HttpRequest& request, Client client, GenerationCall (*parse)(std::string_view)) {
  const auto arrival = std::chrono::steady_clock::now();
  if (draining_) {
    client.respond(ApiError{.status = 503, .message = "the server is shutting down"});
    return;
  }
  if (!has_places(1)) {
    metrics_.refused_for_queue();
    client.respond(ApiError{.status = 503,
                            .message = fmt::format("the queue is full: {} requests run or wait; try again", max_live_),
                            .code = "queue_full"});
    return;
  }
  ++n_reading_;
  worker_.post([this, parse, arrival, client = std::move(client), body = request.body, seed = random_()] {
    std::function<void()> next;
    const auto refusal = [&client](ApiError error) {
      return [client, error = std::move(error)] { client.respond(error); };
    };
    try {
      GenerationCall call = parse(body);
      std::vector<Request> requests = to_requests(call, model_, seed);
      next = [this, client, arrival, call = std::move(call), requests = std::move(requests)]() mutable {
        start(std::move(call), std::move(requests), std::move(client), arrival);
      };
    } catch (const ApiError& error) {
      next = refusal(error);
    } catch (const std::exception& error) {
      next = refusal({.status = 500, .message = error.what()});
    }
    post_([this, next = std::move(next)] {
      --n_reading_;
      next();
      end_if_drained();
    });
  });
}

void Service::start(GenerationCall call, std::vector<Request> requests, Client client,
                    std::chrono::steady_clock::time_point arrival) {
  const int64_t n_choices = std::ssize(requests) * call.n;
  if (!has_places(n_choices)) {
    metrics_.refused_for_queue();
    const bool can_ever = n_choices <= max_live_;
    const std::string message = fmt::format("{} choices beside {} requests: the queue has {} places; {}", n_choices,
                                            n_live(), max_live_, can_ever ? "try again" : "ask for fewer");
    client.respond(can_ever ? ApiError{.status = 503, .message = message, .code = "queue_full"}
                            : ApiError{.message = message, .param = call.n > 1 ? "n" : "prompt"});
    return;
  }
  AnswerHead head{
      .is_chat = call.is_chat,
      .id = (call.is_chat ? "chatcmpl-" : "cmpl-") + random_id(),
      .created =
          std::chrono::duration_cast<std::chrono::seconds>(std::chrono::system_clock::now().time_since_epoch()).count(),
      .model = model_.name,
      .scores = call.n_logprobs.has_value()};
  const auto ids = std::make_shared<std::vector<RequestId>>();
  Generation::Surroundings surroundings{
      .tokenizer = model_.tokenizer,
      .metrics = &metrics_,
      .cancel = [this, ids](size_t choice_idx) { engine_.cancel((*ids)[choice_idx]); },
      .print =
          [this](std::function<std::string()> make, std::function<void(std::string)> use) {
            worker_.post(
                [this, make = std::move(make), use = std::move(use)] { post_([use, text = make()] { use(text); }); });
          }};
  const auto generation = std::make_shared<Generation>(call, std::move(head), requests, client.exchange, client.headers,
                                                       std::move(surroundings), arrival);
  for (const Request& prompt : requests) {
    const RequestId first = engine_.submit(prompt, call.n);
    for (RequestId id = first; id < first + call.n; ++id) {
      live_.emplace(id, Live{generation, ids->size()});
      ids->push_back(id);
    }
  }
  client.exchange->on_gone = [generation = std::weak_ptr(generation)] {
    if (const auto alive = generation.lock()) alive->abandon();
  };
  generation->start();
}

void Service::deliver(EventBatch batch) {
  metrics_.set(batch.engine);
  for (Event& event : batch.events) {
    const auto it = live_.find(event.id);
    if (it == live_.end()) continue;
    const Live live = it->second;
    if (event.finish) live_.erase(it);
    live.generation->add(live.choice_idx, std::move(event), batch.ready);
  }
  end_if_drained();
}

void Service::drain(std::function<void()> done) {
  draining_ = true;
  drained_ = std::move(done);
  end_if_drained();
}

void Service::end_if_drained() {
  if (drained_ && live_.empty() && n_reading_ == 0) std::exchange(drained_, {})();
}

void Service::cancel_all() {
  for (const auto& [id, live] : live_) engine_.cancel(id);
}

std::string Service::random_id() {
  return fmt::format("{:016x}{:08x}", random_(), static_cast<uint32_t>(random_()));
}

}  // namespace kivi
