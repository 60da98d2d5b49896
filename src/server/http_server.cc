#include "server/http_server.h"

#include <sys/resource.h>

#include <boost/asio.hpp>
#include <boost/beast/core.hpp>
#include <boost/beast/http.hpp>
#include <list>
#include <optional>
#include <utility>

#include "core/error.h"
#include "server/http_exchange.h"

namespace kivi {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = beast::http;
using asio::ip::tcp;
using boost::system::error_code;
using Clock = HttpExchange::Clock;

constexpr auto kLinger = std::chrono::seconds(2);  // a refused body is read away for, so that the refusal arrives
constexpr std::string_view kComment = ": keep-alive\n\n";

auto seconds(HttpOptions::Seconds s) {
  return std::chrono::duration_cast<Clock::duration>(s);
}

}  // namespace

class HttpServer::Impl {
 public:
  Impl(HttpOptions options, Handler handler);

  class Connection;
  using Idle = std::list<Connection*>;

  asio::awaitable<void> accept();
  asio::awaitable<void> wait_for_signals();
  void make_place();
  void stop_if_idle() {
    if (stops_when_idle_ && n_connections_ == 0) loop_.stop();
  }
  HttpResponse error(int status, const std::string& message) const;

  HttpOptions options_;
  Handler handler_;
  Idle idle_;  // connections without an exchange, the longest idle first
  int port_ = 0;
  size_t n_connections_ = 0;
  bool draining_ = false;
  bool stops_when_idle_ = false;
  asio::io_context loop_{1};  // owns the connections, which use what is above
  asio::executor_work_guard<asio::io_context::executor_type> work_{loop_.get_executor()};
  tcp::acceptor acceptor_{loop_};
  asio::signal_set signals_{loop_};
};

class HttpServer::Impl::Connection : public std::enable_shared_from_this<Connection> {
 public:
  Connection(Impl& server, tcp::socket socket) : server_(server), stream_(std::move(socket)) {
    ++server_.n_connections_;
    place_ = server_.idle_.insert(server_.idle_.end(), this);
  }
  ~Connection() {
    set_busy();
    --server_.n_connections_;
    server_.stop_if_idle();
  }
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;

  asio::awaitable<void> run();
  void close() {
    set_busy();
    error_code ignored;
    stream_.socket().close(ignored);
  }

 private:
  using Parser = http::request_parser<http::string_body>;

  asio::awaitable<bool> read(Parser& parser);
  asio::awaitable<bool> refuse(const error_code& ec);
  void watch(const std::shared_ptr<QueuedExchange>& exchange);
  asio::awaitable<void> answer(Parser& parser);
  asio::awaitable<void> send_whole(HttpResponse response, unsigned version, bool is_head);
  asio::awaitable<void> send_stream(QueuedExchange& exchange, unsigned version);
  template <typename Buffers>
  asio::awaitable<void> send_part(const Buffers& buffers);
  template <typename Body>
  http::response<Body> head_of(const HttpResponse& response, unsigned version);

  void set_busy() {
    if (place_) server_.idle_.erase(*place_);
    place_.reset();
  }
  void set_idle() {
    if (!place_) place_ = server_.idle_.insert(server_.idle_.end(), this);
  }

  Impl& server_;
  beast::tcp_stream stream_;
  beast::flat_buffer buffer_;
  std::optional<Idle::iterator> place_;
  bool keeps_alive_ = true;
};

// Errors of the socket end the coroutine as exceptions, which close the connection.
asio::awaitable<void> HttpServer::Impl::Connection::run() {
  const auto self = shared_from_this();
  try {
    while (keeps_alive_) {
      Parser parser;
      const bool is_read = co_await read(parser);
      if (!is_read) break;
      co_await answer(parser);
      set_idle();
    }
  } catch (const boost::system::system_error&) {
  }
  close();
}

asio::awaitable<bool> HttpServer::Impl::Connection::read(Parser& parser) {
  const HttpOptions& options = server_.options_;
  parser.header_limit(static_cast<uint32_t>(options.max_header_bytes));
  parser.body_limit(options.max_body_bytes);
  error_code ec;
  if (buffer_.size() == 0) {
    stream_.expires_after(seconds(options.idle_timeout));
    const size_t n =
        co_await stream_.async_read_some(buffer_.prepare(4096), asio::redirect_error(asio::use_awaitable, ec));
    if (ec) co_return false;
    buffer_.commit(n);
  }
  stream_.expires_after(seconds(options.request_timeout));
  co_await http::async_read_header(stream_, buffer_, parser, asio::redirect_error(asio::use_awaitable, ec));
  if (!ec && beast::iequals(parser.get()[http::field::expect], "100-continue")) {
    const http::response<http::empty_body> go_on(http::status::continue_, parser.get().version());
    co_await http::async_write(stream_, go_on, asio::redirect_error(asio::use_awaitable, ec));
  }
  if (!ec) co_await http::async_read(stream_, buffer_, parser, asio::redirect_error(asio::use_awaitable, ec));
  if (!ec) co_return true;
  co_return co_await refuse(ec);
}

// Says what is wrong with a request that could not be read, if anybody is there to read it. False.
asio::awaitable<bool> HttpServer::Impl::Connection::refuse(const error_code& ec) {
  const bool is_too_slow = ec == beast::error::timeout;
  if (!is_too_slow && ec.category() != http::make_error_code(http::error::bad_method).category()) co_return false;
  if (ec == http::error::end_of_stream || ec == http::error::partial_message) co_return false;
  keeps_alive_ = false;
  const HttpOptions& options = server_.options_;
  HttpResponse response = server_.error(400, "malformed HTTP request: " + ec.message());
  if (ec == http::error::body_limit) {
    response = server_.error(413, fmt::format("request body: at most {} bytes", options.max_body_bytes));
  } else if (ec == http::error::header_limit) {
    response = server_.error(431, fmt::format("request header: at most {} bytes", options.max_header_bytes));
  } else if (is_too_slow) {
    // The stream's timeout has closed the socket.
    co_return false;
  }
  co_await send_whole(std::move(response), 11, false);
  error_code ignored;
  stream_.socket().shutdown(tcp::socket::shutdown_send, ignored);
  stream_.expires_after(kLinger);
  char rest[4096];
  while (!ignored) {
    co_await stream_.async_read_some(asio::buffer(rest), asio::redirect_error(asio::use_awaitable, ignored));
  }
  co_return false;
}

// Notices that the client has closed its side while its answer is made or sent.
void HttpServer::Impl::Connection::watch(const std::shared_ptr<QueuedExchange>& exchange) {
  stream_.socket().async_wait(tcp::socket::wait_read, [self = shared_from_this(), exchange](error_code ec) {
    if (exchange->done() || ec == asio::error::operation_aborted) return;
    tcp::socket& socket = self->stream_.socket();
    char byte = 0;
    socket.non_blocking(true, ec);
    const size_t n = socket.receive(asio::buffer(&byte, 1), tcp::socket::message_peek, ec);
    if (n > 0 || ec == asio::error::would_block) return;  // the next request: no more can be seen from here
    exchange->leave();
  });
}

asio::awaitable<void> HttpServer::Impl::Connection::answer(Parser& parser) {
  set_busy();
  const unsigned version = parser.get().version();
  const bool is_head = parser.get().method() == http::verb::head;
  keeps_alive_ = parser.keep_alive() && !server_.draining_;
  HttpRequest request;
  request.method = std::string(parser.get().method_string());
  const std::string_view target(parser.get().target().data(), parser.get().target().size());
  request.path = std::string(target.substr(0, target.find('?')));
  for (const auto& field : parser.get()) {
    request.headers.push_back({std::string(field.name_string()), std::string(field.value())});
  }
  request.body = std::move(parser.get().body());

  stream_.expires_never();
  const auto exchange = std::make_shared<QueuedExchange>(stream_.get_executor(), server_.options_.max_stream_bytes);
  watch(exchange);
  try {
    server_.handler_(std::move(request), exchange);
    while (!exchange->head() && !exchange->gone()) co_await exchange->changed(std::chrono::hours(1));
    if (!exchange->gone() && exchange->is_stream()) {
      co_await send_stream(*exchange, version);
    } else if (!exchange->gone()) {
      co_await send_whole(std::move(*exchange->head()), version, is_head);
    }
    if (exchange->gone()) keeps_alive_ = false;
  } catch (const boost::system::system_error&) {
    exchange->leave();
    keeps_alive_ = false;
  }
  exchange->sent();
  error_code ignored;
  stream_.socket().cancel(ignored);  // the watch
  keeps_alive_ = keeps_alive_ && !server_.draining_;
}

template <typename Body>
http::response<Body> HttpServer::Impl::Connection::head_of(const HttpResponse& response, unsigned version) {
  http::response<Body> head(static_cast<http::status>(response.status), version);
  if (!response.content_type.empty()) head.set(http::field::content_type, response.content_type);
  for (const HttpHeader& header : response.headers) head.set(header.name, header.value);
  head.keep_alive(keeps_alive_);
  return head;
}

template <typename Buffers>
asio::awaitable<void> HttpServer::Impl::Connection::send_part(const Buffers& buffers) {
  stream_.expires_after(seconds(server_.options_.write_timeout));
  co_await asio::async_write(stream_, buffers, asio::use_awaitable);
}

asio::awaitable<void> HttpServer::Impl::Connection::send_whole(HttpResponse response, unsigned version, bool is_head) {
  auto message = head_of<http::string_body>(response, version);
  message.body() = std::move(response.body);
  message.prepare_payload();
  stream_.expires_after(seconds(server_.options_.write_timeout));
  http::response_serializer<http::string_body> serializer(message);
  if (is_head) {
    co_await http::async_write_header(stream_, serializer, asio::use_awaitable);
  } else {
    co_await http::async_write(stream_, serializer, asio::use_awaitable);
  }
  stream_.expires_never();
}

asio::awaitable<void> HttpServer::Impl::Connection::send_stream(QueuedExchange& exchange, unsigned version) {
  const bool is_chunked = version >= 11;
  if (!is_chunked) keeps_alive_ = false;
  auto head = head_of<http::empty_body>(*exchange.head(), version);
  head.chunked(is_chunked);
  http::response_serializer<http::empty_body> serializer(head);
  stream_.expires_after(seconds(server_.options_.write_timeout));
  co_await http::async_write_header(stream_, serializer, asio::use_awaitable);

  while (!exchange.gone()) {
    std::string bytes = exchange.take_bytes();
    const bool has_news = !bytes.empty();
    if (!has_news && exchange.ended()) break;
    if (!has_news) {
      const bool is_changed = co_await exchange.changed(seconds(server_.options_.keep_alive));
      if (is_changed || exchange.has_bytes() || exchange.ended()) continue;
      bytes = kComment;
    }
    const Clock::time_point ready = exchange.oldest();
    if (is_chunked) {
      co_await send_part(http::make_chunk(asio::buffer(bytes)));
    } else {
      co_await send_part(asio::buffer(bytes));
    }
    const std::chrono::duration<double> delay = Clock::now() - ready;
    if (has_news && ready != Clock::time_point{} && server_.options_.on_write_delay) {
      server_.options_.on_write_delay(delay.count());
    }
  }
  if (is_chunked && !exchange.gone()) co_await send_part(http::make_chunk_last());
  stream_.expires_never();
}

HttpServer::Impl::Impl(HttpOptions options, Handler handler)
    : options_(std::move(options)), handler_(std::move(handler)) {
  tcp::resolver resolver(loop_);
  error_code ec;
  const auto found =
      resolver.resolve(options_.host, std::to_string(options_.port),
                       tcp::resolver::passive | tcp::resolver::numeric_service | tcp::resolver::address_configured, ec);
  if (ec || found.empty()) {
    fail(ErrorCode::kInvalidArgument,
         "--host {}: not an address of this machine ({}); use 127.0.0.1, or 0.0.0.0 for all", options_.host,
         ec.message());
  }
  const tcp::endpoint endpoint = found.begin()->endpoint();
  acceptor_.open(endpoint.protocol(), ec);
  if (!ec) acceptor_.set_option(tcp::acceptor::reuse_address(true), ec);
  if (!ec) acceptor_.bind(endpoint, ec);
  if (!ec) acceptor_.listen(tcp::acceptor::max_listen_connections, ec);
  if (ec) {
    fail(ErrorCode::kInvalidArgument, "cannot listen at {}:{}: {}; choose another --host or --port", options_.host,
         options_.port, ec.message());
  }
  port_ = acceptor_.local_endpoint().port();
}

HttpResponse HttpServer::Impl::error(int status, const std::string& message) const {
  return options_.make_error ? options_.make_error(status, message)
                             : HttpResponse{.status = status, .content_type = "text/plain", .body = message};
}

asio::awaitable<void> HttpServer::Impl::accept() {
  for (;;) {
    error_code ec;
    tcp::socket socket = co_await acceptor_.async_accept(asio::redirect_error(asio::use_awaitable, ec));
    if (ec == asio::error::operation_aborted || !acceptor_.is_open()) co_return;
    if (ec) {  // for want of file descriptors, mostly
      make_place();
      asio::steady_timer pause(loop_, std::chrono::milliseconds(20));
      co_await pause.async_wait(asio::use_awaitable);
      continue;
    }
    if (n_connections_ >= options_.max_connections) make_place();
    socket.set_option(tcp::no_delay(true), ec);
    const auto connection = std::make_shared<Connection>(*this, std::move(socket));
    asio::co_spawn(loop_, connection->run(), asio::detached);
  }
}

// Connections with an exchange are never closed for others: those are bounded by the server's queue.
void HttpServer::Impl::make_place() {
  if (!idle_.empty()) idle_.front()->close();
}

asio::awaitable<void> HttpServer::Impl::wait_for_signals() {
  for (;;) {
    error_code ec;
    co_await signals_.async_wait(asio::redirect_error(asio::use_awaitable, ec));
    if (ec) co_return;
    options_.on_signal();
  }
}

// Thousands of connections need as many file descriptors.
void raise_descriptor_limit(size_t n) {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur >= n + 256) return;
  limit.rlim_cur = std::min<rlim_t>(limit.rlim_max, n + 256);
  setrlimit(RLIMIT_NOFILE, &limit);
}

HttpServer::HttpServer(HttpOptions options, Handler handler)
    : impl_(std::make_unique<Impl>(std::move(options), std::move(handler))) {
  raise_descriptor_limit(impl_->options_.max_connections);
  if (impl_->options_.on_signal) {
    impl_->signals_.add(SIGINT);
    impl_->signals_.add(SIGTERM);
    asio::co_spawn(impl_->loop_, impl_->wait_for_signals(), asio::detached);
  }
  asio::co_spawn(impl_->loop_, impl_->accept(), asio::detached);
}

HttpServer::~HttpServer() {
  impl_->stops_when_idle_ = false;
}

void HttpServer::run() {
  impl_->loop_.run();
}

void HttpServer::post(std::function<void()> task) {
  asio::post(impl_->loop_, std::move(task));
}

void HttpServer::drain() {
  error_code ignored;
  impl_->draining_ = true;
  impl_->acceptor_.close(ignored);
  while (!impl_->idle_.empty()) impl_->make_place();
}

void HttpServer::post_after(HttpOptions::Seconds delay, std::function<void()> task) {
  asio::post(impl_->loop_, [this, delay, task = std::move(task)]() mutable {
    const auto timer = std::make_shared<asio::steady_timer>(impl_->loop_, seconds(delay));
    timer->async_wait([timer, task = std::move(task)](const error_code& ec) {
      if (!ec) task();
    });
  });
}

void HttpServer::stop_when_idle() {
  impl_->stops_when_idle_ = true;
  impl_->stop_if_idle();
}

void HttpServer::stop() {
  impl_->loop_.stop();
}

int HttpServer::port() const {
  return impl_->port_;
}

size_t HttpServer::n_connections() const {
  return impl_->n_connections_;
}

}  // namespace kivi
