// The HTTP layer over loopback, with clients that behave and clients that do not.
#include "server/http_server.h"

#include <gtest/gtest.h>

#include <atomic>
#include <future>
#include <thread>

#include "core/error.h"
#include "server/loopback_client.h"

namespace kivi {
namespace {

using Seconds = HttpOptions::Seconds;

class HttpServerTest : public ::testing::Test {
 protected:
  using Exchange = std::shared_ptr<HttpExchange>;

  void start(HttpOptions options) {
    options.port = 0;
    server = std::make_unique<HttpServer>(
        options, [this](HttpRequest request, Exchange exchange) { handle(request, std::move(exchange)); });
    loop = std::thread([this] { server->run(); });
  }
  void TearDown() override {
    server->stop();
    loop.join();
    held.clear();
  }
  void handle(const HttpRequest& request, Exchange exchange) {
    ++n_requests;
    exchange->on_gone = [this] { ++n_gone; };
    if (request.path == "/echo") exchange->respond({.content_type = "text/plain", .body = request.body + "|echo"});
    if (request.path == "/silent") exchange->start_stream({.content_type = "text/event-stream"});
    if (request.path == "/three") {
      exchange->start_stream({.content_type = "text/plain"});
      for (const char* part : {"one", "two", "three"}) exchange->write(part, HttpExchange::Clock::now());
      exchange->end_stream();
    }
    if (request.path == "/flood") {
      exchange->start_stream({.content_type = "text/plain"});
      flood(exchange);
    }
    held.push_back(std::move(exchange));
  }
  // More than any buffer between here and a client that does not read.
  void flood(const Exchange& exchange) {
    if (n_gone > 0 || ++n_floods > 100000) return;
    exchange->write(std::string(4096, 'x'), HttpExchange::Clock::now());
    server->post([this, exchange] { flood(exchange); });
  }
  template <typename Condition>
  static bool soon(Condition condition) {
    for (int i = 0; i < 1000 && !condition(); ++i) std::this_thread::sleep_for(std::chrono::milliseconds(10));
    return condition();
  }
  LoopbackClient connect() { return LoopbackClient(server->port()); }

  std::unique_ptr<HttpServer> server;
  std::thread loop;
  std::vector<Exchange> held;
  std::atomic<int> n_requests = 0;
  std::atomic<int> n_gone = 0;
  int n_floods = 0;
};

TEST_F(HttpServerTest, AnswersSeveralRequestsOnOneConnection) {
  start({});
  const LoopbackClient client = connect();
  for (int i = 0; i < 3; ++i) {
    client.send("POST /echo?q=1 HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nhi");
    EXPECT_NE(client.read("|echo").find("200 OK"), std::string::npos);
  }
  // Two at once.
  client.send("GET /echo HTTP/1.1\r\nHost: x\r\n\r\nGET /three HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
  const std::string both = client.read();
  EXPECT_NE(both.find("|echo"), std::string::npos);
  EXPECT_NE(both.find("three"), std::string::npos);
  EXPECT_EQ(n_gone, 0);
}

TEST_F(HttpServerTest, StreamsAreChunkedAndEnd) {
  start({});
  const std::string answer = connect().ask("/three", "0\r\n\r\n");
  EXPECT_NE(answer.find("Transfer-Encoding: chunked"), std::string::npos);
  EXPECT_NE(answer.find("onetwothree"), std::string::npos) << answer;
  const LoopbackClient old = connect();
  old.send("GET /three HTTP/1.0\r\n\r\n");
  EXPECT_TRUE(old.read().ends_with("\r\n\r\nonetwothree"));
}

TEST_F(HttpServerTest, NoticesThatAClientHasGone) {
  start({});
  {
    const LoopbackClient waiting = connect();
    waiting.send("GET /wait HTTP/1.1\r\nHost: x\r\n\r\n");
    const LoopbackClient streaming = connect();
    streaming.ask("/silent", "\r\n\r\n");
    ASSERT_TRUE(soon([this] { return n_requests == 2; }));
    EXPECT_EQ(n_gone, 0);
  }
  EXPECT_TRUE(soon([this] { return n_gone == 2; }));
}

TEST_F(HttpServerTest, ASilentStreamGetsComments) {
  start({.keep_alive = Seconds(0.05)});
  EXPECT_NE(connect().ask("/silent", ": keep-alive\n\n\r\ne\r\n: keep-alive\n\n").find("event-stream"),
            std::string::npos);
}

TEST_F(HttpServerTest, ASlowReaderIsDroppedAndHoldsNobodyUp) {
  start({.max_stream_bytes = 1 << 16});
  const LoopbackClient slow = connect();
  slow.send("GET /flood HTTP/1.1\r\nHost: x\r\n\r\n");
  for (int i = 0; i < 20; ++i) EXPECT_NE(connect().ask("/echo", "|echo").find("200 OK"), std::string::npos);
  EXPECT_TRUE(soon([this] { return n_gone == 1; }));
}

TEST_F(HttpServerTest, RefusesWhatIsTooLarge) {
  start({.max_header_bytes = 1000, .max_body_bytes = 1000});
  const LoopbackClient body = connect();
  body.send("POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000\r\n\r\n");
  EXPECT_NE(body.read().find(" 413 "), std::string::npos);
  const LoopbackClient chunked = connect();
  chunked.send("POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n7d0\r\n" + std::string(2000, 'x'));
  EXPECT_NE(chunked.read().find(" 413 "), std::string::npos);
  const LoopbackClient header = connect();
  header.send("GET /echo HTTP/1.1\r\nX: " + std::string(2000, 'x') + "\r\n\r\n");
  EXPECT_NE(header.read().find(" 431 "), std::string::npos);
  const LoopbackClient rubbish = connect();
  rubbish.send("rubbish\r\n\r\n");
  EXPECT_NE(rubbish.read().find(" 400 "), std::string::npos);
  EXPECT_EQ(n_requests, 0);
}

TEST_F(HttpServerTest, ClosesIdleAndHalfSentRequests) {
  start({.idle_timeout = Seconds(0.1), .request_timeout = Seconds(0.2)});
  EXPECT_EQ(connect().read(), "");
  const LoopbackClient half = connect();
  half.send("POST /echo HTTP/1.1\r\nContent-Length: 10\r\n\r\nhalf");
  EXPECT_EQ(half.read(), "");
  EXPECT_EQ(n_requests, 0);
}

TEST_F(HttpServerTest, TheLongestIdleGivesWay) {
  start({.max_connections = 8});
  const LoopbackClient busy = connect();
  busy.ask("/silent", "\r\n\r\n");
  std::vector<std::unique_ptr<LoopbackClient>> idle;
  for (int i = 0; i < 30; ++i) {
    idle.push_back(std::make_unique<LoopbackClient>(server->port()));
    ASSERT_TRUE(idle.back()->is_connected());
  }
  EXPECT_NE(connect().ask("/echo", "|echo").find("200 OK"), std::string::npos);
  EXPECT_EQ(idle.front()->read(), "");
  EXPECT_EQ(n_gone, 0);
  std::promise<size_t> n;
  server->post([&] { n.set_value(server->n_connections()); });
  EXPECT_LE(n.get_future().get(), 9U);
}

TEST_F(HttpServerTest, DrainingLetsAnswersEnd) {
  start({});
  const LoopbackClient idle = connect();
  const LoopbackClient streaming = connect();
  streaming.ask("/silent", "\r\n\r\n");
  server->post([this] {
    server->drain();
    server->stop_when_idle();
  });
  EXPECT_EQ(idle.read(), "");
  server->post([this] {
    held.back()->write("last words", HttpExchange::Clock::now());
    held.back()->end_stream();
  });
  EXPECT_NE(streaming.read().find("last words"), std::string::npos);
  EXPECT_TRUE(soon([this] { return !connect().is_connected(); }));
}

TEST(HttpServerErrors, SaysWhereItCannotListen) {
  EXPECT_THROW(HttpServer({.host = "192.0.2.1", .port = 1}, nullptr), Error);
  EXPECT_THROW(HttpServer({.host = "no such host", .port = 1}, nullptr), Error);
}

}  // namespace
}  // namespace kivi
