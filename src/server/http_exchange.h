// The exchange that a connection of http_server.cc sends from.
#pragma once

#include <boost/asio.hpp>
#include <optional>
#include <string>
#include <utility>

#include "server/http_server.h"

namespace kivi {

// What a handler answers through; what a connection sends from.
class QueuedExchange final : public HttpExchange {
 public:
  QueuedExchange(const boost::asio::any_io_executor& executor, size_t max_stream_bytes)
      : news_(executor), max_stream_bytes_(max_stream_bytes) {}

  void respond(HttpResponse response) override {
    if (gone_ || head_) return;
    head_ = std::move(response);
    ended_ = true;
    news_.cancel();
  }
  void start_stream(HttpResponse head) override {
    if (gone_ || head_) return;
    queued_ = std::move(head.body);
    head_ = std::move(head);
    is_stream_ = true;
    news_.cancel();
  }
  void write(std::string_view bytes, Clock::time_point ready) override {
    if (gone_ || ended_) return;
    if (queued_.empty()) oldest_ = ready;
    queued_ += bytes;
    if (queued_.size() > max_stream_bytes_) leave();
    news_.cancel();
  }
  void end_stream() override {
    ended_ = true;
    news_.cancel();
  }

  // The client has gone, or must go.
  void leave() {
    if (gone_ || done_) return;
    gone_ = true;
    news_.cancel();
    if (on_gone) std::exchange(on_gone, {})();
  }
  void sent() { done_ = true; }

  bool gone() const { return gone_; }
  bool done() const { return done_; }
  bool ended() const { return ended_; }
  bool is_stream() const { return is_stream_; }
  std::optional<HttpResponse>& head() { return head_; }
  bool has_bytes() const { return !queued_.empty(); }
  std::string take_bytes() { return std::exchange(queued_, {}); }
  Clock::time_point oldest() const { return oldest_; }  // of the bytes last taken

  // Until something has changed; false if nothing has for so long.
  boost::asio::awaitable<bool> changed(Clock::duration most) {
    boost::system::error_code ec;
    news_.expires_after(most);
    co_await news_.async_wait(boost::asio::redirect_error(boost::asio::use_awaitable, ec));
    co_return ec == boost::asio::error::operation_aborted;
  }

 private:
  boost::asio::steady_timer news_;
  size_t max_stream_bytes_;
  std::optional<HttpResponse> head_;
  std::string queued_;
  Clock::time_point oldest_{};
  bool is_stream_ = false;
  bool ended_ = false;  // by the handler
  bool done_ = false;   // sent
  bool gone_ = false;
};

}  // namespace kivi
