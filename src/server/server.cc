#include "server/server.h"

#include <pthread.h>
#include <unistd.h>

#include <utility>

namespace kivi {

Server::Server(ServerOptions options) : options_(std::move(options)) {
  HttpOptions http = options_.http;
  http.make_error = [](int status, const std::string& message) {
    return ApiError{.status = status, .message = message}.response();
  };
  http.on_write_delay = [this](double seconds) {
    if (is_open_) service_->metrics().written(seconds);
  };
  if (options_.handles_signals) http.on_signal = [this] { on_signal(); };
  http_ = std::make_unique<HttpServer>(std::move(http),
                                       [this](HttpRequest request, std::shared_ptr<HttpExchange> exchange) {
                                         handle(std::move(request), std::move(exchange));
                                       });
  loop_ = std::thread([this] {
    pthread_setname_np(pthread_self(), "kivi-http");
    http_->run();
  });
}

Server::~Server() {
  http_->stop();
  wait();
}

void Server::open(Engine& engine, ServedModel model) {
  service_ = std::make_unique<Service>(engine, std::move(model), options_.service,
                                       [this](std::function<void()> task) { http_->post(std::move(task)); });
  http_->post([this] { is_open_ = true; });
}

void Server::wait() {
  if (loop_.joinable()) loop_.join();
  service_.reset();
}

void Server::handle(HttpRequest request, std::shared_ptr<HttpExchange> exchange) {
  if (is_open_) {
    service_->handle(std::move(request), std::move(exchange));
  } else {
    exchange->respond(ApiError{.status = 503, .message = "the model is being loaded; try again soon"}.response());
  }
}

void Server::shut_down() {
  http_->post([this] { drain(); });
}

void Server::on_signal() {
  if (!is_open_) _exit(1);  // a model that is being loaded cannot be asked to stop
  is_ending_ ? http_->stop() : drain();
}

void Server::drain() {
  if (std::exchange(is_ending_, true)) return;
  http_->drain();
  if (!is_open_) {
    http_->stop();
    return;
  }
  // When the last answer has been given, connections still have to send it.
  service_->drain([this] { http_->stop_when_idle(); });
  http_->post_after(options_.shutdown_timeout, [this] {
    service_->cancel_all();
    http_->post_after(HttpOptions::Seconds(2), [this] { http_->stop(); });
  });
}

}  // namespace kivi
