#include "text/byte_alphabet.h"

#include <array>
#include <charconv>

namespace kivi {
namespace {

constexpr size_t kEndOfSymbols = 0x144;  // one past the last symbol: U+0100 and 68 bytes that have no own character

struct ByteAlphabet {
  std::array<uint16_t, 256> symbol_of_byte{};
  std::array<int16_t, kEndOfSymbols> byte_of_symbol{};  // -1: no symbol
};

constexpr ByteAlphabet make_byte_alphabet() {
  ByteAlphabet alphabet;
  for (auto& byte : alphabet.byte_of_symbol) byte = -1;
  uint16_t next_free = 0x100;
  for (uint16_t byte = 0; byte < 256; ++byte) {
    const bool is_own = (byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
    const uint16_t symbol = is_own ? byte : next_free++;
    alphabet.symbol_of_byte[byte] = symbol;
    alphabet.byte_of_symbol[symbol] = static_cast<int16_t>(byte);
  }
  return alphabet;
}

constexpr ByteAlphabet kAlphabet = make_byte_alphabet();
static_assert(kAlphabet.symbol_of_byte[' '] == 0x120 && kAlphabet.symbol_of_byte[0xAD] == kEndOfSymbols - 1);

}  // namespace

std::string byte_symbol(uint8_t byte) {
  const uint16_t symbol = kAlphabet.symbol_of_byte[byte];
  if (symbol < 0x80) return {static_cast<char>(symbol)};
  return {static_cast<char>(0xC0 | (symbol >> 6)), static_cast<char>(0x80 | (symbol & 0x3F))};
}

std::string symbols_to_bytes(std::string_view token) {
  std::string bytes;
  for (size_t i = 0; i < token.size(); ++i) {
    size_t symbol = static_cast<uint8_t>(token[i]);
    if (symbol >= 0x80) {  // every symbol beyond ASCII has two bytes, the first of them 0xC2 to 0xC5
      const bool has_second = i + 1 < token.size() && (static_cast<uint8_t>(token[i + 1]) & 0xC0) == 0x80;
      if (symbol < 0xC2 || symbol > 0xC5 || !has_second) return std::string(token);
      symbol = (symbol & 0x1F) << 6 | (static_cast<uint8_t>(token[++i]) & 0x3F);
    }
    if (symbol >= kEndOfSymbols || kAlphabet.byte_of_symbol[symbol] < 0) return std::string(token);
    bytes += static_cast<char>(kAlphabet.byte_of_symbol[symbol]);
  }
  return bytes;
}

std::optional<uint8_t> byte_of_token(std::string_view token) {
  uint8_t byte = 0;
  if (token.size() != 6 || !token.starts_with("<0x") || token[5] != '>') return std::nullopt;
  const auto [end, error] = std::from_chars(token.data() + 3, token.data() + 5, byte, 16);
  return error == std::errc() && end == token.data() + 5 ? std::optional(byte) : std::nullopt;
}

}  // namespace kivi
