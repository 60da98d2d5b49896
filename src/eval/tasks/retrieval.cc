#include "eval/tasks/retrieval.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <functional>
#include <random>

#include "core/error.h"
#include "eval/tasks/task_data.h"

namespace kivi {
namespace {

std::vector<std::string> split_lines(std::string_view text) {
  std::vector<std::string> lines;
  while (!text.empty()) {
    const size_t end = std::min(text.find('\n'), text.size());
    lines.push_back(std::string(text.substr(0, end)) + "\n");
    text.remove_prefix(std::min(end + 1, text.size()));
  }
  return lines;
}

bool contains(std::string_view text, std::string_view part) {
  return text.find(part) != std::string_view::npos;
}

struct Needle {
  std::string_view fact, question, answer;
};

// No essay says these, and none can be guessed.
constexpr std::array kNeedles = {
    Needle{"The lighthouse keeper of Varnholm paints his door apricot every spring.",
           "What colour does the lighthouse keeper of Varnholm paint his door?", "apricot"},
    Needle{"The best tool for opening a Tessel crate is a bent spoon.",
           "What is the best tool for opening a Tessel crate?", "bent spoon"},
    Needle{"Mirabel's parrot is named Quartermaster.", "What is the name of Mirabel's parrot?", "Quartermaster"},
    Needle{"The night ferry to Ostrava Island leaves from pier nineteen.",
           "From which pier does the night ferry to Ostrava Island leave?", "nineteen"},
    Needle{"The secret ingredient of grandmother Ilse's soup is smoked paprika.",
           "What is the secret ingredient of grandmother Ilse's soup?", "smoked paprika"},
    Needle{"The clockmaker's guild of Dunmere keeps its records in a piano.",
           "Where does the clockmaker's guild of Dunmere keep its records?", "piano"},
    Needle{"The winner of the Halvorsen marathon was given a goat.",
           "What was the winner of the Halvorsen marathon given?", "goat"},
    Needle{"Professor Adeyemi wrote her thesis on the migration of eels.",
           "What did Professor Adeyemi write her thesis on the migration of?", "eels"},
};

// Asks around a text.
TaskPrompt needle_prompt(const Needle& needle, const std::string& text) {
  constexpr std::string_view kInstruction = "Read the text and answer the question at its end in one short sentence.";
  const std::string asked = fmt::format("{}\n\n{}\n\nQuestion: {}", kInstruction, text, needle.question);
  return {.messages = {{"user", asked}}, .plain = asked + "\nAnswer:"};
}

// Of the instruction and all lines.
TaskPrompt passkey_prompt(const std::string& text) {
  const std::string asked = text + "What is the pass key?";
  return {.messages = {{"user", asked}}, .plain = asked + " The pass key is"};
}

// The first keys are the paper's.
std::vector<std::string> passkeys(const PasskeyPrompts& prompts, int64_t n) {
  std::vector<std::string> keys;
  for (const PasskeyPrompts::Prompt& prompt : prompts.prompts) keys.push_back(prompt.key);
  std::mt19937 random(1);
  while (std::ssize(keys) < n) keys.push_back(fmt::format("{}", 10000 + random() % 90000));
  keys.resize(static_cast<size_t>(n));
  return keys;
}

// An item for every cell and number; `hide` gives what is hidden in the item of a number, but for its depth.
struct Hidden {
  HiddenFact fact;
  std::string expected;
};

std::vector<TaskItem> items_of(const Haystack& haystack, const RetrievalGrid& grid, const PromptFormat& format,
                               const std::function<Hidden(int64_t number)>& hide) {
  std::vector<TaskItem> items;
  for (const int64_t context : grid.contexts) {
    for (const double depth : grid.depths) {
      for (int64_t number = 0; number < grid.n_per_cell; ++number) {
        Hidden hidden = hide(number);
        hidden.fact.depth = depth;
        items.push_back({.id = fmt::format("{}/{:.3f}/{}", context, depth, number),
                         .expected = hidden.expected,
                         .prompt = fit_prompt(haystack, hidden.fact, format, context - grid.answer_tokens),
                         .cell = TaskCell{context, depth}});
      }
    }
  }
  return items;
}

// Lower case, and one space for any white space.
std::string folded(std::string_view text) {
  std::string result;
  for (const char c : text) {
    const bool is_space = c == ' ' || c == '\n' || c == '\t' || c == '\r';
    if (!is_space) result += c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
    if (is_space && !result.empty() && result.back() != ' ') result += ' ';
  }
  return result;
}

}  // namespace

std::string PasskeyPrompts::line_of(std::string_view key) const {
  const std::string& old = prompts.front().key;
  std::string line = key_line;
  for (size_t at = line.find(old); at != std::string::npos; at = line.find(old, at + key.size())) {
    line.replace(at, old.size(), key);
  }
  return line;
}

PasskeyPrompts read_passkey_prompts(const std::string& path) {
  PasskeyPrompts prompts;
  for_each_json_line(path, [&](const JsonField& line) {
    const std::string& target = line["target"].string();
    std::vector<std::string> lines = split_lines(line["input"].string());
    const auto key = std::ranges::find_if(lines, [&](const auto& text) { return contains(text, target); });
    if (target.empty() || key == lines.end() || lines.size() < 3) {
      line["input"].fail(ErrorCode::kCorrupt, "must have an instruction, lines of text and one with the target {}",
                         kivi::quoted(target));
    }
    const auto place = static_cast<double>(key - lines.begin() - 1);
    const double depth = std::clamp(place / static_cast<double>(lines.size() - 2), 0.0, 1.0);
    prompts.prompts.push_back({line["input"].string() + "\n", target, depth});
    if (prompts.prompts.size() > 1) return;
    prompts.key_line = *key;
    lines.erase(key);
    prompts.instruction = lines.front();
    prompts.filler.assign(lines.begin() + 1, lines.end());
  });
  return prompts;
}

std::vector<double> spaced_depths(int64_t n) {
  if (n == 1) return {0.5};
  std::vector<double> depths;
  for (int64_t i = 0; i < n; ++i) depths.push_back(static_cast<double>(i) / static_cast<double>(n - 1));
  return depths;
}

std::vector<TaskItem> paper_passkey_items(const PasskeyPrompts& prompts, int64_t answer_tokens,
                                          const PromptFormat& format) {
  std::vector<TaskItem> items;
  for (const PasskeyPrompts::Prompt& prompt : prompts.prompts) {
    TaskItem item{.id = fmt::format("paper/{}", items.size()), .expected = prompt.key};
    item.prompt = format.encode(passkey_prompt(prompt.text));
    item.cell = TaskCell{std::ssize(item.prompt) + answer_tokens, prompt.depth};
    items.push_back(std::move(item));
  }
  return items;
}

std::vector<TaskItem> passkey_items(const PasskeyPrompts& prompts, const RetrievalGrid& grid,
                                    const PromptFormat& format) {
  const Haystack haystack(*format.tokenizer, prompts.filler);
  const std::vector<std::string> keys = passkeys(prompts, grid.n_per_cell);
  return items_of(haystack, grid, format, [&](int64_t number) -> Hidden {
    const std::string& key = keys[static_cast<size_t>(number)];
    return {{.fact = prompts.line_of(key),
             .ask = [&prompts](const std::string& text) { return passkey_prompt(prompts.instruction + text); }},
            key};
  });
}

std::vector<TaskItem> needle_items(std::span<const std::string> essays, const RetrievalGrid& grid,
                                   const PromptFormat& format) {
  std::vector<std::string> sentences;
  for (const std::string& essay : essays) {
    for (std::string& sentence : split_sentences(essay + "\n\n")) sentences.push_back(std::move(sentence));
  }
  const Haystack haystack(*format.tokenizer, sentences);
  return items_of(haystack, grid, format, [&](int64_t number) -> Hidden {
    const Needle& needle = kNeedles[static_cast<size_t>(number) % kNeedles.size()];
    return {{.fact = std::string(needle.fact) + " ",
             .first_piece = number * std::ssize(sentences) / grid.n_per_cell,
             .ask = [&needle](const std::string& text) { return needle_prompt(needle, text); }},
            std::string(needle.answer)};
  });
}

bool finds(const TaskItem& item, std::string_view answer) {
  return contains(folded(answer), folded(item.expected));
}

}  // namespace kivi
