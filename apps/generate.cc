#include "generate.h"

#include <cstdio>
#include <utility>

#include "text/detokenizer.h"

namespace kivi::app {

Answer generate(Engine& engine, const Tokenizer& tokenizer, Request request,
                const std::function<void(std::string_view)>& show, const std::function<bool()>& stop) {
  Answer answer;
  StreamDetokenizer detokenizer(tokenizer);
  const auto add = [&](const std::string& text) {
    if (!text.empty()) show(text);
    answer.text += text;
  };
  const RequestId id = engine.submit(std::move(request));
  while (!engine.idle()) {
    for (Event& event : engine.step()) {
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
