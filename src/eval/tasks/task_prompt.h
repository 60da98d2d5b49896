// How a task asks: as a conversation in the model's chat format, or as plain text where it has none.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "text/chat.h"
#include "text/tokenizer.h"

namespace kivi {

// The same question both ways.
struct TaskPrompt {
  std::vector<ChatMessage> messages;
  std::string plain;  // ends where the answer begins
};

// What encodes prompts. The tokenizer must outlive it.
struct PromptFormat {
  const Tokenizer* tokenizer = nullptr;
  ChatFormat chat = ChatFormat::kNone;  // kNone: plain
  std::string default_system{};         // of the model's template

  bool is_plain() const { return chat == ChatFormat::kNone; }
  std::vector<TokenId> encode(const TaskPrompt& prompt) const {
    return is_plain() ? tokenizer->encode(prompt.plain, true, false)
                      : encode_chat(*tokenizer, chat, prompt.messages, default_system);
  }
};

}  // namespace kivi
