// The server as a program uses it: listens at once, answers 503 until it is opened for a model, and shuts down in
// order.
#pragma once

#include <memory>
#include <string>
#include <thread>

#include "server/http_server.h"
#include "server/service.h"

namespace kivi {

struct ServerOptions {
  HttpOptions http{};
  ServiceOptions service{};
  HttpOptions::Seconds shutdown_timeout{30};  // for requests that run when the server is told to end
  bool handles_signals = false;               // the first SIGINT or SIGTERM: shut_down(); the second: at once
};

class Server {
 public:
  // Listens. Throws Error{kInvalidArgument} if it cannot.
  explicit Server(ServerOptions options);
  // Cuts off what still runs.
  ~Server();

  // Serves the model from here on. The engine must live until wait() has come back.
  void open(Engine& engine, ServedModel model);
  // Until the server has shut down; the engine is not used after that.
  void wait();
  // From any thread: takes no more requests, ends when those that run have ended or shutdown_timeout has passed.
  void shut_down();

  int port() const { return http_->port(); }

 private:
  void handle(HttpRequest request, std::shared_ptr<HttpExchange> exchange);
  void on_signal();
  void drain();

  ServerOptions options_;
  std::unique_ptr<HttpServer> http_;
  std::unique_ptr<Service> service_;  // the loop's, but for making and ending it
  bool is_open_ = false;              // the loop's, as what follows
  bool is_ending_ = false;
  std::thread loop_;
};

}  // namespace kivi
