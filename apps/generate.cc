#include "generate.h"

#include <fmt/format.h>
#include <unistd.h>

#include <cstdio>
#include <utility>

#include "text/detokenizer.h"

namespace kivi::app {
namespace {

// On a terminal, says that a long prompt is being read: its prefill is one step without news.
class ReadingNote {
 public:
  explicit ReadingNote(size_t n_tokens) : is_shown_(n_tokens > 500 && isatty(STDERR_FILENO) != 0) {
    if (is_shown_) fmt::print(stderr, "reading {} tokens ...", n_tokens);
  }
  ~ReadingNote() { clear(); }
  void clear() {
    if (is_shown_) fmt::print(stderr, "\r\033[K");
    is_shown_ = false;
  }

 private:
  bool is_shown_;
};

}  // namespace

Answer generate(Engine& engine, const Tokenizer& tokenizer, Request request,
                const std::function<void(std::string_view)>& show, const std::function<bool()>& stop) {
  Answer answer;
  StreamDetokenizer detokenizer(tokenizer);
  const auto add = [&](const std::string& text) {
    if (!text.empty()) show(text);
    answer.text += text;
  };
  ReadingNote note(request.prompt.size());
  const RequestId id = engine.submit(std::move(request));
  while (!engine.idle()) {
    std::vector<Event> events = engine.step();
    note.clear();
    for (Event& event : events) {
      if (event.token) add(detokenizer.add(*event.token));
      if (event.finish) answer.finish = std::move(*event.finish);
    }
    if (stop && stop()) engine.cancel(id);
  }
  add(detokenizer.finish());
  if (answer.finish.error) throw Error(*answer.finish.error);
  return answer;
}

void show_text(std::string_view text) {
  std::fwrite(text.data(), 1, text.size(), stdout);
  std::fflush(stdout);
}

}  // namespace kivi::app
