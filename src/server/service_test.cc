// Requests through the service and a real engine of a small random model, without sockets.
#include "server/service.h"

#include <gtest/gtest.h>

#include <deque>
#include <nlohmann/json.hpp>

#include "engine/engine_fixture.h"
#include "server/letter_tokenizer.h"

namespace kivi {
namespace {

using Json = nlohmann::json;

struct FakeExchange final : HttpExchange {
  void respond(HttpResponse answer) override { response = std::move(answer); }
  void start_stream(HttpResponse head) override { response = std::move(head); }
  void write(std::string_view bytes, Clock::time_point /*ready*/) override { stream += bytes; }
  void end_stream() override { ended = true; }

  // The JSON of all events but the last, which is [DONE].
  std::vector<Json> events() const {
    std::vector<Json> all;
    for (size_t at = 0; at < stream.size();) {
      const size_t end = stream.find("\n\n", at);
      const std::string event = stream.substr(at + 6, end - at - 6);
      if (event != "[DONE]") all.push_back(Json::parse(event));
      at = end + 2;
    }
    return all;
  }

  std::optional<HttpResponse> response;
  std::string stream;
  bool ended = false;
};
using FakePtr = std::shared_ptr<FakeExchange>;

class ServiceTest : public EngineTest {
 protected:
  void start(ServiceOptions options = {}, int max_sequences = 4) {
    start_with({.max_tokens = 64, .max_sequences = max_sequences}, std::move(options), 512);
  }
  void start_with(const KvCapacity& capacity, ServiceOptions options, int64_t horizon) {
    engine.reset(new Engine(make_engine(parse_kv_config("f16"), capacity, 4096, horizon)));  // which cannot be moved
    serve(std::move(options));
  }
  void start_with_prefixes(bool reuses) {
    engine = std::make_unique<Engine>(*session.backend, session.decoder,
                                      EngineOptions{.kv = parse_kv_config("f16"),
                                                    .capacity = {.max_tokens = 64, .max_sequences = 8},
                                                    .max_step_tokens = 16,
                                                    .reuse_prefixes = reuses});
    serve({});
  }
  void serve(ServiceOptions options) {
    service.reset();
    ServedModel model{.name = "tiny", .tokenizer = &tokenizer, .chat_format = ChatFormat::kChatML, .max_model_len = 64};
    service = std::make_unique<Service>(*engine, model, std::move(options), [this](std::function<void()> task) {
      const std::lock_guard lock(mutex);
      tasks.push_back(std::move(task));
      news.notify_one();
    });
  }
  // The loop, until `done`.
  void run_until(const std::function<bool()>& done) {
    while (!done()) {
      std::unique_lock lock(mutex);
      ASSERT_TRUE(news.wait_for(lock, std::chrono::seconds(60), [this] { return !tasks.empty(); }));
      const std::function<void()> task = std::move(tasks.front());
      tasks.pop_front();
      lock.unlock();
      task();
    }
  }
  FakePtr send(const std::string& path, const std::string& body, std::vector<HttpHeader> headers = {},
               const char* method = "POST") {
    auto exchange = std::make_shared<FakeExchange>();
    service->handle({.method = method, .path = path, .headers = std::move(headers), .body = body}, exchange);
    return exchange;
  }
  Json answer(const std::string& path, const std::string& body, int status = 200) {
    const FakePtr exchange = send(path, body);
    run_until([&] { return exchange->response.has_value(); });
    EXPECT_EQ(exchange->response->status, status) << exchange->response->body;
    return Json::parse(exchange->response->body);
  }
  int status_of(const std::string& path, std::vector<HttpHeader> headers, const char* method = "GET") {
    return send(path, "", std::move(headers), method)->response.value_or(HttpResponse{.status = 0}).status;
  }
  FakePtr stream(const std::string& path, const std::string& body) {
    FakePtr exchange = send(path, body);
    run_until([&] { return exchange->ended || (exchange->response && exchange->response->status != 200); });
    return exchange;
  }
  void expect_metric(const std::string& name, int value) {
    EXPECT_NE(service->metrics().text().find(fmt::format("{}{{model_name=\"tiny\"}} {}\n", name, value)),
              std::string::npos)
        << service->metrics().text();
  }
  void expect_idle() {
    run_until([this] { return service->n_live() == 0; });
    expect_metric("vllm:kv_cache_usage_perc", 0);
  }

  LetterTokenizer tokenizer;
  std::mutex mutex;
  std::condition_variable news;
  std::deque<std::function<void()>> tasks;
  std::unique_ptr<Engine> engine;
  std::unique_ptr<Service> service;
};

TEST_F(ServiceTest, ACompletionIsWhatTheDecoderSays) {
  start();
  const Json json = answer("/v1/completions", R"({"prompt": "abc", "max_tokens": 9, "temperature": 0})");
  const auto tokens = session.continue_greedily(parse_kv_config("f16"), {1, 2, 3}, 9);
  std::vector<TokenId> until_end(tokens.begin(), std::ranges::find(tokens, 0));
  // Bytes that are not UTF-8 come as U+FFFD, as JSON's writer puts it, too.
  const std::string text = Json(tokenizer.decode(until_end)).dump(-1, ' ', false, Json::error_handler_t::replace);
  EXPECT_EQ(json["choices"][0]["text"], Json::parse(text));
  EXPECT_EQ(json["object"], "text_completion");
  EXPECT_EQ(json["usage"]["prompt_tokens"], 3);
  EXPECT_TRUE(json["id"].get<std::string>().starts_with("cmpl-"));
  expect_idle();
}

TEST_F(ServiceTest, AStreamAddsUpToTheAnswer) {
  start();
  const std::string fields = R"("prompt": "abc", "max_tokens": 20, "temperature": 0, "ignore_eos": true)";
  const Json whole = answer("/v1/completions", "{" + fields + "}");
  const FakePtr exchange =
      stream("/v1/completions", "{" + fields + R"(, "stream": true, "stream_options": {"include_usage": true}})");
  std::string text;
  const std::vector<Json> events = exchange->events();
  for (const Json& event : events) {
    for (const Json& choice : event["choices"]) text += choice["text"].get<std::string>();
  }
  EXPECT_EQ(text, whole["choices"][0]["text"]);
  EXPECT_TRUE(events.back()["choices"].empty());
  EXPECT_EQ(events.back()["usage"], whole["usage"]);
  EXPECT_EQ(events[events.size() - 2]["choices"][0]["finish_reason"], "length");
  EXPECT_TRUE(exchange->stream.ends_with("data: [DONE]\n\n"));
}

TEST_F(ServiceTest, AChatStreamBeginsWithTheRole) {
  start();
  const FakePtr exchange = stream("/v1/chat/completions", R"({"messages": [{"role": "user", "content": "ab"}], "n": 2,
      "max_tokens": 6, "stream": true, "seed": 5})");
  std::map<int, std::vector<Json>> by_choice;
  for (const Json& event : exchange->events()) {
    EXPECT_EQ(event["object"], "chat.completion.chunk");
    by_choice[event["choices"][0]["index"]].push_back(event["choices"][0]);
  }
  ASSERT_EQ(by_choice.size(), 2U);
  for (const auto& [index, chunks] : by_choice) {
    EXPECT_EQ(chunks.front()["delta"]["role"], "assistant");
    EXPECT_FALSE(chunks.back()["finish_reason"].is_null());
    for (size_t i = 0; i + 1 < chunks.size(); ++i) EXPECT_TRUE(chunks[i]["finish_reason"].is_null());
  }
}

TEST_F(ServiceTest, EchoWithLogprobsIsAsScoringClientsReadIt) {
  start();
  const Json json = answer(
      "/v1/completions", R"({"prompt": [1, 2, 3, 4], "max_tokens": 1, "echo": true, "logprobs": 2, "temperature": 0})");
  const Json& logprobs = json["choices"][0]["logprobs"];
  ASSERT_EQ(logprobs["tokens"].size(), 5U);
  ASSERT_EQ(logprobs["token_logprobs"].size(), 5U);
  ASSERT_EQ(logprobs["top_logprobs"].size(), 5U);
  EXPECT_TRUE(logprobs["token_logprobs"][0].is_null());
  EXPECT_TRUE(logprobs["top_logprobs"][0].is_null());
  for (size_t i = 1; i < 5; ++i) {
    const std::string token = logprobs["tokens"][i];
    EXPECT_EQ(logprobs["top_logprobs"][i][token], logprobs["token_logprobs"][i]);
    EXPECT_GE(logprobs["top_logprobs"][i].size(), 2U);
  }
  EXPECT_EQ(logprobs["text_offset"], Json::parse("[0, 1, 2, 3, 4]"));
  const Json none = answer("/v1/completions", R"({"prompt": [1, 2], "max_tokens": 0, "echo": true, "logprobs": 0})");
  EXPECT_EQ(none["choices"][0]["text"], "ab");
  EXPECT_EQ(none["choices"][0]["logprobs"]["tokens"].size(), 2U);
}

TEST_F(ServiceTest, ChoicesOfManyPromptsAreInOrder) {
  start();
  const Json json =
      answer("/v1/completions", R"({"prompt": ["a", "b", "c"], "n": 2, "max_tokens": 3, "echo": true, "seed": 1})");
  ASSERT_EQ(json["choices"].size(), 6U);
  for (size_t i = 0; i < 6; ++i) {
    EXPECT_EQ(json["choices"][i]["index"], i);
    EXPECT_EQ(json["choices"][i]["text"].get<std::string>()[0], "aabbcc"[i]);
  }
  EXPECT_EQ(json["usage"]["prompt_tokens"], 3);
}

TEST_F(ServiceTest, RefusesWhatDoesNotFit) {
  start();
  const Json error = answer("/v1/completions", R"({"prompt": "abc", "max_tokens": 62})", 400)["error"];
  EXPECT_EQ(error["code"], "context_length_exceeded");
  EXPECT_NE(error["message"].get<std::string>().find("64 tokens"), std::string::npos);
  EXPECT_EQ(answer("/v1/completions", R"({"prompt": ""})", 400)["error"]["param"], "prompt");
  EXPECT_EQ(answer("/v1/completions", R"({"prompt": [50]})", 400)["error"]["param"], "prompt");
  EXPECT_EQ(answer("/v1/completions", R"({"prompt": "a", "logit_bias": {"50": 1}})", 400)["error"]["param"],
            "logit_bias");
  EXPECT_EQ(answer("/v1/completions", R"({"prompt": "a", "model": "other"})", 404)["error"]["code"], "model_not_found");
  EXPECT_EQ(answer("/v1/completions", R"({"prompt": "a", "n": 100, "max_tokens": 1})", 200)["choices"].size(), 100U);
}

TEST_F(ServiceTest, AFullQueueAnswersAtOnce) {
  start({.max_queue = 1}, 1);
  const std::string body = R"({"prompt": "a", "max_tokens": 60, "ignore_eos": true})";
  const FakePtr first = send("/v1/completions", body);
  const FakePtr second = send("/v1/completions", body);
  const FakePtr third = send("/v1/completions", body);
  ASSERT_TRUE(third->response);
  EXPECT_EQ(third->response->status, 503);
  const auto& headers = third->response->headers;
  EXPECT_TRUE(std::ranges::any_of(headers, [](const HttpHeader& h) { return h.name == "Retry-After"; }));
  run_until([&] { return first->response && second->response; });
  EXPECT_EQ(first->response->status + second->response->status, 400);
  EXPECT_EQ(answer("/v1/completions", R"({"prompt": "a", "n": 3})", 400)["error"]["param"], "n");
}

TEST_F(ServiceTest, AClientThatGoesEndsItsRequest) {
  start();
  const FakePtr exchange = send("/v1/completions", R"({"prompt": "a", "max_tokens": 60, "ignore_eos": true,
                                                       "n": 3, "stream": true})");
  run_until([&] { return exchange->stream.size() > 100; });
  exchange->on_gone();
  run_until([&] { return service->n_live() == 0; });
  EXPECT_FALSE(exchange->ended);
  expect_idle();
}

TEST_F(ServiceTest, StopStringsEndTheEnginesWorkToo) {
  start();
  const std::string fields = R"("prompt": "abc", "temperature": 0, "ignore_eos": true, "max_tokens": 50)";
  const std::string text = answer("/v1/completions", "{" + fields + "}")["choices"][0]["text"];
  const std::string stop = text.substr(10, 2);
  const Json json = answer("/v1/completions", "{" + fields + R"(, "stop": ")" + stop + "\"}");
  EXPECT_EQ(json["choices"][0]["text"], text.substr(0, text.find(stop)));
  EXPECT_EQ(json["choices"][0]["finish_reason"], "stop");
  expect_idle();
  EXPECT_LT(engine->stats().decode_tokens, 49 + 49);
}

TEST_F(ServiceTest, KeysAndOriginsAreChecked) {
  start({.api_key = "secret", .allowed_origins = {"https://good.org"}});
  EXPECT_EQ(status_of("/v1/models", {}), 401);
  EXPECT_EQ(status_of("/v1/models", {{"Authorization", "Bearer secreT"}}), 401);
  EXPECT_EQ(status_of("/v1/models", {{"Authorization", "Bearer secretsecret"}}), 401);
  EXPECT_EQ(status_of("/v1/models", {{"authorization", "bearer secret"}}), 200);
  EXPECT_EQ(status_of("/health", {}), 200);
  EXPECT_EQ(status_of("/health", {{"Origin", "https://evil.org"}, {"Host", "localhost:8000"}}), 403);
  EXPECT_EQ(status_of("/health", {{"Origin", "http://localhost:8000"}, {"Host", "localhost:8000"}}), 200);
  EXPECT_EQ(status_of("/v1/completions", {{"Origin", "https://good.org"}, {"Host", "x"}}, "OPTIONS"), 204);
  EXPECT_EQ(status_of("/nowhere", {}), 404);
  EXPECT_EQ(status_of("/v1/completions", {}), 405);
}

TEST_F(ServiceTest, OneModelByItsName) {
  start();
  EXPECT_EQ(status_of("/v1/models/tiny", {}), 200);
  EXPECT_EQ(status_of("/v1/models/other", {}), 404);
  const FakePtr list = send("/v1/models", "", {}, "GET");
  EXPECT_EQ(Json::parse(list->response->body)["data"][0]["max_model_len"], 64);
}

TEST_F(ServiceTest, TokenizesBothWays) {
  start();
  const Json json = answer("/tokenize", R"({"prompt": "abc"})");
  EXPECT_EQ(json["tokens"], Json::parse("[1, 2, 3]"));
  EXPECT_EQ(json["count"], 3);
  EXPECT_EQ(json["max_model_len"], 64);
  EXPECT_EQ(answer("/detokenize", R"({"tokens": [3, 2, 0]})")["prompt"], "cb<end>");
  EXPECT_EQ(answer("/detokenize", R"({"tokens": [99]})", 400)["error"]["param"], "tokens");
  EXPECT_GT(answer("/tokenize", R"({"messages": [{"role": "user", "content": "ab"}]})")["count"], 2);
}

TEST_F(ServiceTest, PreemptedRequestsCompleteWithTheRightText) {
  // Keys and values of 16 tokens a page: room for two requests of 40, where four start, as nobody looks ahead.
  start_with({.max_tokens = 64, .max_sequences = 4, .memory_bytes = 12 * window_page_bytes(session.decoder.kv_shape())},
             {}, 0);
  const std::string body = R"({"prompt": "abcd", "max_tokens": 36, "temperature": 0, "ignore_eos": true})";
  std::vector<FakePtr> all;
  for (int i = 0; i < 4; ++i) all.push_back(send("/v1/completions", body));
  run_until([&] { return std::ranges::all_of(all, [](const FakePtr& one) { return one->response.has_value(); }); });
  const auto tokens = session.continue_greedily(parse_kv_config("f16"), {1, 2, 3, 4}, 36);
  for (const FakePtr& one : all) {
    EXPECT_EQ(Json::parse(one->response->body)["choices"][0]["text"], tokenizer.decode(tokens));
  }
  EXPECT_GE(engine->stats().preemptions, 1);
  expect_idle();
}

TEST_F(ServiceTest, PromptsThatBeginAlikeShareTheCache) {
  // In turn: the first; one that is the same up to 35 letters; one of ids that is cut at its control token, 0, and one
  // that is the same up to there; choices of one prompt.
  const std::string fields = R"("max_tokens": 5, "temperature": 0, "ignore_eos": true)";
  const std::string letters = "abcdefghijklmnopqrstuvwxyzabcdefghi";
  const std::vector<std::pair<std::string, int>> asked = {
      {R"({"prompt": ")" + letters + "jkl\", " + fields + "}", 0},
      {R"({"prompt": ")" + letters + "zyxw\", " + fields + "}", 32},
      {R"({"prompt": [9, 9, 9, 9, 9, 9, 0, 1, 2], )" + fields + "}", 0},
      {R"({"prompt": [9, 9, 9, 9, 9, 9, 0, 3], )" + fields + "}", 6},
      {R"({"prompt": ")" + letters + R"(", "n": 3, "seed": 4, "max_tokens": 5})", 32}};
  std::vector<Json> outputs[2];
  for (const bool reuses : {false, true}) {
    start_with_prefixes(reuses);
    for (const auto& [body, n_reused] : asked) {
      const Json json = answer("/v1/completions", body);
      EXPECT_EQ(json["usage"]["prompt_tokens_details"]["cached_tokens"], reuses ? n_reused : 0) << body;
      outputs[reuses].push_back(json["choices"]);
    }
    expect_idle();
    expect_metric("vllm:prefix_cache_queries_total", reuses ? 38 + 39 + 9 + 8 + 3 * 35 : 0);
    expect_metric("vllm:prefix_cache_hits_total", reuses ? 32 + 6 + 32 + 2 * 35 : 0);
  }
  EXPECT_EQ(outputs[true], outputs[false]);
}

TEST_F(ServiceTest, ChoicesOfAPromptAreComputedOnce) {
  start({}, 8);
  const Json json = answer("/v1/completions", R"({"prompt": ["abcdefgh", "ab"], "n": 4, "max_tokens": 3, "seed": 2})");
  EXPECT_EQ(json["choices"].size(), 8U);
  EXPECT_EQ(json["usage"]["prompt_tokens"], 8 + 2);
  expect_idle();
  EXPECT_EQ(engine->stats().prefill_tokens, 8 + 2);
}

TEST_F(ServiceTest, DrainingEndsWhatRunsAndTakesNoMore) {
  start();
  const FakePtr running = send("/v1/completions", R"({"prompt": "a", "max_tokens": 30, "ignore_eos": true})");
  bool drained = false;
  service->drain([&] { drained = true; });
  EXPECT_EQ(status_of("/health", {}), 503);
  EXPECT_EQ(send("/v1/completions", R"({"prompt": "a"})")->response->status, 503);
  run_until([&] { return drained; });
  EXPECT_EQ(running->response->status, 200);
}

TEST_F(ServiceTest, CancellingAllTellsTheClients) {
  start();
  const FakePtr running = send("/v1/completions", R"({"prompt": "a", "max_tokens": 60, "ignore_eos": true})");
  run_until([&] { return service->n_live() == 1; });
  service->cancel_all();
  run_until([&] { return running->response.has_value(); });
  EXPECT_EQ(Json::parse(running->response->body)["choices"][0]["finish_reason"], "abort");
  expect_idle();
}

}  // namespace
}  // namespace kivi
