// One answer of a model, as text that streams.
#pragma once

#include <functional>
#include <string>
#include <string_view>

#include "engine/engine.h"
#include "text/tokenizer.h"

namespace kivi::app {

struct Answer {
  std::string text;
  Finish finish;
};

// Runs a request to its end. `show` gets every piece of text as soon as it is whole; the request is cancelled once
// `stop` says so (it is asked after every step). Throws the Error of a request that fails.
Answer generate(Engine& engine, const Tokenizer& tokenizer, Request request,
                const std::function<void(std::string_view)>& show, const std::function<bool()>& stop = {});

// To standard output, at once.
void show_text(std::string_view text);

}  // namespace kivi::app
