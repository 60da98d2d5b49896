// Passkey and needle: is a fact found again, wherever it is hidden in a context of any length?
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "eval/tasks/haystack.h"
#include "eval/tasks/task.h"
#include "eval/tasks/task_prompt.h"

namespace kivi {

// The paper's test prompts: an instruction, a line of filler again and again, and a line with the key.
struct PasskeyPrompts {
  struct Prompt {
    std::string text;  // all of it
    std::string key;
    double depth = 0.0;  // of the key's line, as a part of the lines
  };
  std::vector<Prompt> prompts{};

  // Of the first prompt, each line with its newline.
  std::string instruction;
  std::string key_line;
  std::vector<std::string> filler{};

  // The key line with another key.
  std::string line_of(std::string_view key) const;
};

// Of a file with {"input", "target"} in each line. Throws Error{kCorrupt} for an input without a line of its target.
PasskeyPrompts read_passkey_prompts(const std::string& path);

// The grid of contexts and depths.
struct RetrievalGrid {
  std::vector<int64_t> contexts{};  // tokens of prompt and answer
  std::vector<double> depths{};     // in [0, 1]
  int64_t n_per_cell = 1;
  int64_t answer_tokens = 1;  // of each context, kept for the answer
};

// n equally spaced depths from 0 to 1; 0.5 alone.
std::vector<double> spaced_depths(int64_t n);

// The prompts as they are, with their question. Each is a cell of its own length and depth.
std::vector<TaskItem> paper_passkey_items(const PasskeyPrompts& prompts, int64_t answer_tokens,
                                          const PromptFormat& format);

// By context, depth and number. The keys are those of the prompts, then others of five digits, in all cells the same.
std::vector<TaskItem> passkey_items(const PasskeyPrompts& prompts, const RetrievalGrid& grid,
                                    const PromptFormat& format);

// Sentences on what has nothing to do with the essays, each hidden in another stretch of them.
std::vector<TaskItem> needle_items(std::span<const std::string> essays, const RetrievalGrid& grid,
                                   const PromptFormat& format);

// Whether the answer contains what is expected, apart from case and white space.
bool finds(const TaskItem& item, std::string_view answer);

}  // namespace kivi
