// How vocabularies write bytes. The byte-level alphabet of GPT-2: every byte has a printable character, its symbol.
// SentencePiece: "<0x0A>".
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace kivi {

// The symbol of a byte, as UTF-8: the byte's own Latin-1 character where that is printable and no space, else the next
// free one from U+0100 on (a space is "Ġ").
std::string byte_symbol(uint8_t byte);

// The bytes whose symbols make up `token`; `token` itself if it is not all symbols.
std::string symbols_to_bytes(std::string_view token);

// The byte that SentencePiece's token "<0x0A>" stands for; nullopt for a token that is not so spelled.
std::optional<uint8_t> byte_of_token(std::string_view token);

}  // namespace kivi
