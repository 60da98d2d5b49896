#include "text/chat.h"

#include <algorithm>
#include <array>
#include <optional>
#include <utility>

#include "core/error.h"
#include "text/unicode.h"

namespace kivi {
namespace {

// What surrounds the system prompt in a format's template.
struct FormatFacts {
  ChatFormat format;
  std::string_view name;
  std::string_view before_system, after_system;
};

constexpr std::array kFormats = {
    FormatFacts{ChatFormat::kNone, "none", "", ""},
    FormatFacts{ChatFormat::kChatML, "chatml", "<|im_start|>system\n", "<|im_end|>"},
    FormatFacts{ChatFormat::kLlama2, "llama2", "<<SYS>>\n", "\n<</SYS>>"},
    FormatFacts{ChatFormat::kLlama3, "llama3", "<|start_header_id|>system<|end_header_id|>\n\n", "<|eot_id|>"},
    FormatFacts{ChatFormat::kMistral, "mistral", "", ""},
    FormatFacts{ChatFormat::kGemma, "gemma", "", ""},
    FormatFacts{ChatFormat::kPhi3, "phi3", "<|system|>\n", "<|end|>"},
    FormatFacts{ChatFormat::kFalcon, "falcon", "", ""},
    FormatFacts{ChatFormat::kQwen3, "qwen3", "<|im_start|>system\n", "<|im_end|>"},
};

const FormatFacts& facts(ChatFormat format) {
  return *std::find_if(kFormats.begin(), kFormats.end(), [&](const FormatFacts& f) { return f.format == format; });
}

// Collects a prompt: text is encoded in pieces as long as possible, for tokens may reach over the seams of a template.
class PromptWriter {
 public:
  explicit PromptWriter(const Tokenizer& tokenizer) : tokenizer_(&tokenizer) {}

  void add(std::optional<TokenId> id) {
    encode_text();
    if (!id) return;
    ids_.push_back(*id);
    drops_space_ = tokenizer_->takes_space_after(*id);
  }
  void add_text(std::string_view text) { text_ += text; }
  // A control token by its text; plain text where the vocabulary has no such token.
  void add_marker(std::string_view marker) {
    const std::optional<TokenId> id = tokenizer_->find(marker);
    const bool is_control = id && tokenizer_->token_bytes(*id).empty();
    is_control ? add(id) : add_text(marker);
  }
  std::vector<TokenId> take() {
    encode_text();
    return std::move(ids_);
  }

 private:
  void encode_text() {
    if (text_.empty()) return;
    if (std::exchange(drops_space_, false)) text_.erase(0, leading_space(text_));
    const std::vector<TokenId> ids =
        ids_.empty() ? tokenizer_->encode(text_, false, false) : tokenizer_->encode_after(text_);
    ids_.insert(ids_.end(), ids.begin(), ids.end());
    text_.clear();
  }

  const Tokenizer* tokenizer_;
  std::vector<TokenId> ids_;
  std::string text_;
  bool drops_space_ = false;  // the last token takes the white space behind it
};

using Messages = std::span<const ChatMessage>;

// As the templates' strip() and trim, of ASCII white space.
std::string_view trim(std::string_view text) {
  constexpr std::string_view kSpace = " \t\n\v\f\r";
  const size_t begin = text.find_first_not_of(kSpace);
  if (begin == std::string_view::npos) return {};
  return text.substr(begin, text.find_last_not_of(kSpace) + 1 - begin);
}

void write_chatml(Messages messages, PromptWriter& prompt) {
  for (const ChatMessage& message : messages) {
    prompt.add_marker("<|im_start|>");
    prompt.add_text(message.role + "\n" + message.content);
    prompt.add_marker("<|im_end|>");
    prompt.add_text("\n");
  }
  prompt.add_marker("<|im_start|>");
  prompt.add_text("assistant\n");
}

// An answer without what was thought before it.
std::string_view without_thoughts(std::string_view answer) {
  constexpr std::string_view kEnd = "</think>";
  const size_t end = answer.rfind(kEnd);
  if (end == std::string_view::npos) return answer;
  answer.remove_prefix(end + kEnd.size());
  answer.remove_prefix(std::min(answer.find_first_not_of('\n'), answer.size()));
  return answer;
}

void write_qwen3(std::vector<ChatMessage> conversation, PromptWriter& prompt) {
  for (ChatMessage& message : conversation) {
    if (message.role == "assistant") message.content = without_thoughts(message.content);
  }
  write_chatml(conversation, prompt);
}

void write_phi3(Messages messages, PromptWriter& prompt) {
  for (const ChatMessage& message : messages) {
    prompt.add_marker("<|" + message.role + "|>");
    prompt.add_text("\n" + message.content);
    prompt.add_marker("<|end|>");
    prompt.add_text("\n");
  }
  prompt.add_marker("<|assistant|>");
  prompt.add_text("\n");
}

void write_falcon(Messages messages, PromptWriter& prompt) {
  for (const ChatMessage& message : messages) {
    const std::string_view name = message.role == "system" ? "System: "
                                  : message.role == "user" ? "User: "
                                                           : "Falcon: ";
    prompt.add_text(name);
    prompt.add_text(message.content + "\n");
  }
  prompt.add_text("Falcon:");
}

void write_gemma(const ChatMessage* system, Messages turns, PromptWriter& prompt) {
  for (const ChatMessage& turn : turns) {
    prompt.add_marker("<start_of_turn>");
    prompt.add_text(turn.role == "assistant" ? "model\n" : "user\n");
    if (system != nullptr) prompt.add_text(system->content + "\n\n");
    system = nullptr;
    prompt.add_text(trim(turn.content));
    prompt.add_marker("<end_of_turn>");
    prompt.add_text("\n");
  }
  prompt.add_marker("<start_of_turn>");
  prompt.add_text("model\n");
}

void write_llama3_header(std::string_view role, PromptWriter& prompt) {
  prompt.add_marker("<|start_header_id|>");
  prompt.add_text(role);
  prompt.add_marker("<|end_header_id|>");
  prompt.add_text("\n\n");
}

void write_llama3(Messages messages, PromptWriter& prompt) {
  for (const ChatMessage& message : messages) {
    write_llama3_header(message.role, prompt);
    prompt.add_text(trim(message.content));
    prompt.add_marker("<|eot_id|>");
  }
  write_llama3_header("assistant", prompt);
}

// Llama 2, Mistral and Gemma have turns of user and assistant alone; a system message goes into the first of them.
void check_turns(std::string_view format, Messages turns) {
  if (turns.empty()) fail(ErrorCode::kInvalidArgument, "chat format {}: has no user message; add one", format);
  for (size_t i = 0; i < turns.size(); ++i) {
    const std::string_view expected = i % 2 == 0 ? "user" : "assistant";
    if (turns[i].role != expected) {
      fail(ErrorCode::kInvalidArgument,
           "chat format {}: message {} after the system message is of '{}', must be of '{}'", format, i, turns[i].role,
           expected);
    }
  }
}

void write_llama2(const ChatMessage* system, Messages turns, const Tokenizer& tokenizer, PromptWriter& prompt) {
  for (const ChatMessage& turn : turns) {
    if (turn.role == "assistant") {
      prompt.add_text(" ");
      prompt.add_text(trim(turn.content));
      prompt.add_text(" ");
      prompt.add(tokenizer.eos());
      continue;
    }
    std::string content = turn.content;
    if (system != nullptr) content = "<<SYS>>\n" + system->content + "\n<</SYS>>\n\n" + content;
    system = nullptr;
    prompt.add(tokenizer.bos());
    prompt.add_marker("[INST]");
    prompt.add_text(" ");
    prompt.add_text(trim(content));
    prompt.add_text(" ");
    prompt.add_marker("[/INST]");
  }
}

void write_mistral(const ChatMessage* system, Messages turns, const Tokenizer& tokenizer, PromptWriter& prompt) {
  prompt.add(tokenizer.bos());
  for (const ChatMessage& turn : turns) {
    prompt.add_text(" ");
    if (turn.role == "assistant") {
      prompt.add_text(turn.content);
      prompt.add(tokenizer.eos());
      continue;
    }
    prompt.add_marker("[INST]");
    prompt.add_text(" ");
    if (system != nullptr) prompt.add_text(system->content + "\n\n");
    system = nullptr;
    prompt.add_text(turn.content + " ");
    prompt.add_marker("[/INST]");
  }
}

// The text from `begin` on in a Jinja template, with escapes read if it is in a string literal that `quote` closes.
// nullopt where the literal, or the text outside of expressions, ends before `end` is seen.
std::optional<std::string> literal_until(std::string_view source, size_t begin, char quote, std::string_view end) {
  const bool is_quoted = quote == '\'' || quote == '"';
  std::string text;
  for (size_t i = begin; i < source.size(); ++i) {
    char c = source[i];
    if (is_quoted && c == quote) return std::nullopt;
    if (!is_quoted && c == '{') return std::nullopt;
    if (is_quoted && c == '\\' && i + 1 < source.size()) {
      c = source[++i];
      if (c == 'n') c = '\n';
      if (c == 't') c = '\t';
    }
    text += c;
    if (text.ends_with(end)) return text.substr(0, text.size() - end.size());
  }
  return std::nullopt;
}

}  // namespace

std::string_view name(ChatFormat format) {
  return facts(format).name;
}

ChatFormat parse_chat_format(std::string_view s) {
  const auto it = std::find_if(kFormats.begin(), kFormats.end(), [&](const FormatFacts& f) { return f.name == s; });
  if (it != kFormats.end()) return it->format;
  std::string names;
  for (const FormatFacts& f : kFormats) names.append(names.empty() ? "" : ", ").append(f.name);
  fail(ErrorCode::kInvalidArgument, "chat format '{}': must be one of {}", s, names);
}

ChatFormat recognise_chat_format(std::string_view chat_template) {
  const auto has = [&](std::string_view s) { return chat_template.find(s) != std::string_view::npos; };
  // Phi-4 and Mistral v7 share markers with our formats but not the layout.
  if (has("<|im_sep|>") || has("[SYSTEM_PROMPT]")) return ChatFormat::kNone;
  if (has("<|im_start|>")) return has("</think>") ? ChatFormat::kQwen3 : ChatFormat::kChatML;
  if (has("<|start_header_id|>")) return ChatFormat::kLlama3;
  if (has("<start_of_turn>")) return ChatFormat::kGemma;
  if (has("<|user|>") && (has("<|end|>\\n") || has("<|end|>\n"))) return ChatFormat::kPhi3;
  if (has("User: ") && has("Falcon:")) return ChatFormat::kFalcon;
  if (has("[INST]")) return has("<<SYS>>") ? ChatFormat::kLlama2 : ChatFormat::kMistral;
  return ChatFormat::kNone;
}

std::vector<TokenId> encode_chat(const Tokenizer& tokenizer, ChatFormat format, std::span<const ChatMessage> messages,
                                 std::string_view default_system) {
  if (messages.empty()) fail(ErrorCode::kInvalidArgument, "chat of 0 messages: must have at least 1");
  for (const ChatMessage& message : messages) {
    if (message.role != "system" && message.role != "user" && message.role != "assistant") {
      fail(ErrorCode::kInvalidArgument, "chat role '{}': must be system, user or assistant", message.role);
    }
  }
  std::vector<ChatMessage> conversation(messages.begin(), messages.end());
  if (conversation.front().role != "system" && !default_system.empty()) {
    conversation.insert(conversation.begin(), {"system", std::string(default_system)});
  }
  const ChatMessage* system = conversation.front().role == "system" ? &conversation.front() : nullptr;
  const Messages turns = Messages(conversation).subspan(system != nullptr ? 1 : 0);

  PromptWriter prompt(tokenizer);
  switch (format) {
    case ChatFormat::kNone:
      fail(ErrorCode::kInvalidArgument,
           "chat format none: cannot lay out a conversation; give one of the others, or raw text");
    case ChatFormat::kChatML:
      if (!tokenizer.encode("", true, false).empty()) prompt.add(tokenizer.bos());
      write_chatml(conversation, prompt);
      break;
    case ChatFormat::kQwen3:
      write_qwen3(std::move(conversation), prompt);
      break;
    case ChatFormat::kPhi3:
      if (!tokenizer.encode("", true, false).empty()) prompt.add(tokenizer.bos());
      write_phi3(conversation, prompt);
      break;
    case ChatFormat::kFalcon:
      write_falcon(conversation, prompt);
      break;
    case ChatFormat::kGemma:
      check_turns(name(format), turns);
      prompt.add(tokenizer.bos());
      write_gemma(system, turns, prompt);
      break;
    case ChatFormat::kLlama3:
      prompt.add(tokenizer.bos());
      write_llama3(conversation, prompt);
      break;
    case ChatFormat::kLlama2:
      check_turns(name(format), turns);
      write_llama2(system, turns, tokenizer, prompt);
      break;
    case ChatFormat::kMistral:
      check_turns(name(format), turns);
      write_mistral(system, turns, tokenizer, prompt);
      break;
  }
  return prompt.take();
}

std::string default_system_prompt(std::string_view chat_template) {
  const FormatFacts& format = facts(recognise_chat_format(chat_template));
  if (format.before_system.empty()) return {};
  // The template shows the marker itself, then what a newline is: "\n" in a literal, a newline outside of one.
  const std::string_view marker = format.before_system.substr(0, format.before_system.find('\n'));
  for (size_t at = chat_template.find(marker); at != std::string_view::npos; at = chat_template.find(marker, at + 1)) {
    const char quote = at > 0 ? chat_template[at - 1] : ' ';
    const std::optional<std::string> text = literal_until(chat_template, at, quote, format.after_system);
    if (text && text->starts_with(format.before_system)) return text->substr(format.before_system.size());
  }
  return {};
}

}  // namespace kivi
