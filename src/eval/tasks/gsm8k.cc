#include "eval/tasks/gsm8k.h"

#include <fmt/format.h>

#include "eval/tasks/task_data.h"

namespace kivi {
namespace {

constexpr std::string_view kAnswerMark = "####";
constexpr std::string_view kBox = "\\boxed{";
constexpr std::string_view kInstruction = "\n\nReason step by step, and end with the final answer as a number.";

bool is_digit(char c) {
  return c >= '0' && c <= '9';
}

size_t digits_at(std::string_view text, size_t at) {
  size_t n = 0;
  while (at + n < text.size() && is_digit(text[at + n])) ++n;
  return n;
}

// A number in a text: digits, groups of three after commas, a fraction.
struct Number {
  size_t begin = 0, end = 0;
};

// The first one whose digits begin at or after `from`.
std::optional<Number> find_number(std::string_view text, size_t from) {
  size_t begin = from;
  while (begin < text.size() && !is_digit(text[begin])) ++begin;
  if (begin == text.size()) return std::nullopt;
  size_t end = begin + digits_at(text, begin);
  while (end < text.size() && text[end] == ',' && digits_at(text, end + 1) == 3) end += 4;
  const size_t fraction = end < text.size() && text[end] == '.' ? digits_at(text, end + 1) : 0;
  if (fraction > 0) end += 1 + fraction;
  if (begin > from && text[begin - 1] == '.') --begin;  // ".5"
  return Number{begin, end};
}

// A minus, but not the one of "16-3" or of "ages 3-5"; "-$5" and "$-5" have one.
bool is_negative(std::string_view text, size_t begin) {
  while (begin > 0 && text[begin - 1] == '$') --begin;
  if (begin == 0 || text[begin - 1] != '-') return false;
  --begin;
  while (begin > 0 && text[begin - 1] == '$') --begin;
  if (begin == 0) return true;
  const char before = text[begin - 1];
  return before == ' ' || before == '\n' || before == '\t' || before == '=' || before == '(' || before == '*' ||
         before == '{' || before == ':' || before == '#';
}

std::string normalised(std::string_view text, const Number& number) {
  std::string digits;
  for (const char c : text.substr(number.begin, number.end - number.begin)) {
    if (c != ',') digits += c;
  }
  if (digits.find('.') != std::string::npos) {
    digits.erase(digits.find_last_not_of('0') + 1);
    if (digits.back() == '.') digits.pop_back();
  }
  digits.erase(0, digits.find_first_not_of('0'));
  if (digits.empty() || digits.front() == '.') digits.insert(digits.begin(), '0');
  return is_negative(text, number.begin) && digits != "0" ? "-" + digits : digits;
}

// The first number after the last of a mark.
std::optional<std::string> number_after(std::string_view text, std::string_view mark) {
  const size_t at = text.rfind(mark);
  if (at == std::string_view::npos) return std::nullopt;
  const std::optional<Number> first = find_number(text, at + mark.size());
  return first ? std::optional(normalised(text, *first)) : std::nullopt;
}

std::string without_calculator_notes(std::string_view solution) {
  std::string text;
  while (!solution.empty()) {
    const size_t begin = solution.find("<<");
    const size_t end = begin == std::string_view::npos ? begin : solution.find(">>", begin);
    if (end == std::string_view::npos) return text.append(solution);
    text.append(solution.substr(0, begin));
    solution.remove_prefix(end + 2);
  }
  return text;
}

}  // namespace

std::vector<WordProblem> read_word_problems(const std::string& path, int64_t n_most) {
  std::vector<WordProblem> problems;
  for_each_json_line(path, [&](const JsonField& line) {
    if (n_most > 0 && std::ssize(problems) == n_most) return;
    const std::string& solution = line["answer"].string();
    const std::optional<std::string> number = number_after(solution, kAnswerMark);
    if (!number) line["answer"].fail(ErrorCode::kCorrupt, "does not end with '#### ' and a number");
    problems.push_back({line["question"].string(), without_calculator_notes(solution), *number});
  });
  return problems;
}

std::optional<std::string> marked_number(std::string_view answer) {
  const std::optional<std::string> number = number_after(answer, kAnswerMark);
  return number ? number : final_number(answer);
}

std::optional<std::string> final_number(std::string_view answer) {
  if (const std::optional<std::string> boxed = number_after(answer, kBox)) return boxed;
  std::optional<Number> last;
  for (size_t from = 0; const std::optional<Number> next = find_number(answer, from); from = last->end) last = next;
  return last ? std::optional(normalised(answer, *last)) : std::nullopt;
}

TaskPrompt word_problem_prompt(const WordProblem& problem, std::span<const WordProblem> examples) {
  TaskPrompt prompt;
  for (const WordProblem& example : examples) {
    prompt.messages.push_back({"user", example.question});
    prompt.messages.push_back({"assistant", example.solution});
    prompt.plain += fmt::format("Question: {}\nAnswer: {}\n\n", example.question, example.solution);
  }
  // Examples show how to answer; without them it has to be said.
  const std::string_view instruction = examples.empty() ? kInstruction : "";
  prompt.messages.push_back({"user", problem.question + std::string(instruction)});
  prompt.plain += fmt::format("Question: {}{}\nAnswer:", problem.question, instruction);
  return prompt;
}

std::vector<TaskItem> word_problem_items(std::span<const WordProblem> problems, std::span<const WordProblem> examples,
                                         const PromptFormat& format) {
  std::vector<TaskItem> items;
  for (const WordProblem& problem : problems) {
    items.push_back({.id = fmt::format("{}", items.size()),
                     .expected = problem.number,
                     .prompt = format.encode(word_problem_prompt(problem, examples))});
  }
  return items;
}

bool solves(const TaskItem& item, std::string_view answer) {
  return final_number(answer) == item.expected;
}

bool solves_like_examples(const TaskItem& item, std::string_view answer) {
  return marked_number(answer) == item.expected;
}

}  // namespace kivi
