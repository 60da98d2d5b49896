// HTTP/1.1 for thousands of connections on one thread, the loop: a coroutine per connection, with limits for all that a
// client can make large or slow. Knows nothing of what is served.
//
// A request that is complete goes to the handler, with an exchange to answer through, now or later. A stream's bytes
// are queued; what a client does not fetch in time is bounded by dropping the stream, so that a slow reader costs the
// others nothing.
#pragma once

#include <chrono>
#include <cstddef>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "server/http_message.h"

namespace kivi {

// One request's way to its client. Loop thread only, and not beyond the server's life. Calls after the client has gone,
// or after the end, do nothing.
class HttpExchange {
 public:
  using Clock = std::chrono::steady_clock;

  HttpExchange() = default;
  HttpExchange(const HttpExchange&) = delete;
  HttpExchange& operator=(const HttpExchange&) = delete;
  virtual ~HttpExchange() = default;

  // The whole answer.
  virtual void respond(HttpResponse response) = 0;
  // Or in parts: the head (its body is the first part), then parts, then the end. `ready` is when the part came into
  // being, for the measurement of delays.
  virtual void start_stream(HttpResponse head) = 0;
  virtual void write(std::string_view bytes, Clock::time_point ready) = 0;
  virtual void end_stream() = 0;

  // Called once if the client goes away, or is dropped, before the answer is complete.
  std::function<void()> on_gone;
};

struct HttpOptions {
  using Seconds = std::chrono::duration<double>;

  std::string host = "127.0.0.1";
  int port = 8000;  // 0: any that is free
  size_t max_header_bytes = 16 << 10;
  size_t max_body_bytes = 32 << 20;
  size_t max_stream_bytes = 1 << 20;  // of a stream, that wait for the client, at most
  size_t max_connections = 4096;      // the one that idles longest gives way to a new one
  Seconds idle_timeout{75};           // between requests
  Seconds request_timeout{30};        // from a request's first byte to its last
  Seconds write_timeout{30};          // without progress
  Seconds keep_alive{10};             // a stream that is silent for so long gets a comment
  // SIGINT and SIGTERM, if set.
  std::function<void()> on_signal{};
  // Of parts of streams: from `ready` to when the socket took them.
  std::function<void(double seconds)> on_write_delay{};
  // The answer to what never gets to the handler: 400, 413, 431.
  std::function<HttpResponse(int status, const std::string& message)> make_error{};
};

class HttpServer {
 public:
  using Handler = std::function<void(HttpRequest, std::shared_ptr<HttpExchange>)>;

  // Listens from here on. Throws Error{kInvalidArgument} if it cannot listen there.
  HttpServer(HttpOptions options, Handler handler);
  ~HttpServer();

  // Serves on the calling thread, the loop, until stop().
  void run();

  // From any thread: runs the task on the loop.
  void post(std::function<void()> task);

  // The same, later.
  void post_after(HttpOptions::Seconds delay, std::function<void()> task);

  // From the loop. Takes no more connections and closes those that idle, and the others after their answer.
  void drain();
  // From the loop, after drain(): stops once all connections have closed.
  void stop_when_idle();
  // From any thread. Ends run(); clients that wait are cut off.
  void stop();

  int port() const;
  size_t n_connections() const;  // from the loop

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace kivi
