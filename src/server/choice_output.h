// What a client sees of one sequence: events of the engine become text and scored tokens, in deltas that can be shown
// at once. Text is held back until it is whole UTF-8 and cannot be part of a stop string; the scores of tokens wait for
// their text. Runs off the engine's thread; knows neither JSON nor HTTP.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "engine/request.h"
#include "server/stop_matcher.h"
#include "text/detokenizer.h"
#include "text/tokenizer.h"

namespace kivi {

struct OutputToken {
  TokenId id = 0;
  int64_t text_offset = 0;             // of its text in the choice's text, in characters
  std::optional<ScoredToken> score{};  // none: the first token of a prompt
};

struct OutputDelta {
  std::string text{};
  std::vector<OutputToken> tokens{};  // only where scores are wanted

  bool empty() const { return text.empty() && tokens.empty(); }
  void append(OutputDelta other);
};

class ChoiceOutput {
 public:
  struct Options {
    std::vector<std::string> stops{};
    bool includes_stop = false;
    bool skips_special = true;
    int64_t min_tokens = 0;  // stop strings end nothing before
    bool scores = false;     // tokens are wanted
    bool echo = false;       // the prompt goes first
    bool drops_output = false;
  };

  ChoiceOutput(const Tokenizer& tokenizer, std::vector<TokenId> prompt, Options options);

  // The text and tokens that an event completes. Nothing after the end.
  OutputDelta add(Event event);

  // Set at the end: "stop", "length", "abort" or "error".
  const std::optional<std::string>& finish_reason() const { return finish_reason_; }
  // Of "error".
  const std::optional<Error>& error() const { return error_; }
  // Whether the end came from here, and the engine does not know yet.
  bool must_cancel() const { return stops_.matched(); }
  int64_t n_prompt() const { return static_cast<int64_t>(prompt_.size()); }
  int64_t n_output() const { return n_output_; }  // tokens made, stop tokens included

 private:
  void echo_prompt(OutputDelta& delta);
  void add_token(TokenId id, std::optional<ScoredToken> score, OutputDelta& delta);
  void finish(Event event, OutputDelta& delta);
  void show(std::string text, OutputDelta& delta);

  const Tokenizer* tokenizer_;
  std::vector<TokenId> prompt_;
  Options options_;
  StreamDetokenizer detokenizer_;
  StopMatcher stops_;
  std::vector<ScoredToken> prompt_scores_;
  std::vector<OutputToken> waiting_;  // tokens whose text has not been shown
  int64_t n_decoded_ = 0;             // characters that detokenising gave
  int64_t n_shown_ = 0;               // characters
  int64_t n_output_ = 0;
  bool echoes_ = false;  // still has to
  std::optional<std::string> finish_reason_;
  std::optional<Error> error_;
};

}  // namespace kivi
