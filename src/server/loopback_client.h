// A plain connection to a server of this process, for tests.
#pragma once

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdint>
#include <iterator>
#include <string>
#include <string_view>

namespace kivi {

class LoopbackClient {
 public:
  explicit LoopbackClient(int port) : fd_(socket(AF_INET, SOCK_STREAM, 0)) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<uint16_t>(port));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    timeval most{.tv_sec = 20, .tv_usec = 0};
    setsockopt(fd_, SOL_SOCKET, SO_RCVTIMEO, &most, sizeof(most));
    is_connected_ = connect(fd_, reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0;
  }
  ~LoopbackClient() { close(fd_); }
  LoopbackClient(const LoopbackClient&) = delete;
  LoopbackClient& operator=(const LoopbackClient&) = delete;

  bool is_connected() const { return is_connected_; }
  bool send(std::string_view text) const {
    return ::send(fd_, text.data(), text.size(), MSG_NOSIGNAL) == std::ssize(text);
  }
  // Until the end marker has come, or the server has closed.
  std::string read(std::string_view end = {}) const {
    std::string all;
    char bytes[4096];
    while (end.empty() || all.find(end) == std::string::npos) {
      const ssize_t n = recv(fd_, bytes, sizeof(bytes), 0);
      if (n <= 0) break;
      all.append(bytes, static_cast<size_t>(n));
    }
    return all;
  }
  std::string ask(const std::string& path, std::string_view end) const {
    send("GET " + path + " HTTP/1.1\r\nHost: x\r\n\r\n");
    return read(end);
  }

 private:
  int fd_;
  bool is_connected_;
};

}  // namespace kivi
