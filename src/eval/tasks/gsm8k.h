// GSM8K: word problems of grade school whose answer is a number.
#pragma once

#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "eval/tasks/task.h"
#include "eval/tasks/task_prompt.h"

namespace kivi {

struct WordProblem {
  std::string question;
  std::string solution;  // steps, then "#### " and the number; without the notes of a calculator
  std::string number;    // as final_number() writes it
};

// Of a file with {"question", "answer"} in each line; at most n_most, 0: all. Throws Error{kCorrupt}.
std::vector<WordProblem> read_word_problems(const std::string& path, int64_t n_most);

// The number that an answer ends with: what it puts into \boxed{}, else the last number of all. Without separators of
// thousands, currency, a plus sign and zeros that mean nothing: "$1,234.50" is "1234.5". nullopt if there is none.
std::optional<std::string> final_number(std::string_view answer);

// That of an answer written as the examples are: the first one after the last "####"; without that as final_number().
std::optional<std::string> marked_number(std::string_view answer);

// The problem after examples, which show how to answer; without any it is said. Turns of a conversation, or one text.
TaskPrompt word_problem_prompt(const WordProblem& problem, std::span<const WordProblem> examples);

// Where a plain text goes on to a problem of its own.
inline constexpr std::string_view kNextWordProblem = "\nQuestion:";

std::vector<TaskItem> word_problem_items(std::span<const WordProblem> problems, std::span<const WordProblem> examples,
                                         const PromptFormat& format);

// Whether the answer's number is the item's: of an answer without examples, and with them.
bool solves(const TaskItem& item, std::string_view answer);
bool solves_like_examples(const TaskItem& item, std::string_view answer);

}  // namespace kivi
