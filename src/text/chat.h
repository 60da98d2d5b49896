// Chat formats: how turns become one prompt.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "text/tokenizer.h"

namespace kivi {

enum class ChatFormat { kNone, kChatML, kLlama2, kLlama3, kMistral, kGemma, kPhi3, kFalcon, kQwen3 };

std::string_view name(ChatFormat format);          // "none", "chatml", "llama2", ...
ChatFormat parse_chat_format(std::string_view s);  // throws Error{kInvalidArgument} listing the names

// Recognises the format from the model's Jinja template; kNone if it is not one of ours. kMistral is the layout of
// Mistral's first tokenizer, "<s> [INST] ... [/INST] ...</s>". kQwen3 is ChatML without the thoughts of earlier
// answers.
ChatFormat recognise_chat_format(std::string_view chat_template);

struct ChatMessage {
  std::string role;  // "system", "user", "assistant"
  std::string content;
};

// Ids of the conversation, ending where the assistant's next answer begins. Contents are encoded without parsing
// special tokens, so that a message cannot forge a turn. `default_system` is what the model's own template inserts when
// the conversation has no system message ("" for none): recognised from the template by default_system_prompt().
std::vector<TokenId> encode_chat(const Tokenizer& tokenizer, ChatFormat format, std::span<const ChatMessage> messages,
                                 std::string_view default_system);
std::string default_system_prompt(std::string_view chat_template);

}  // namespace kivi
