#include "text/unicode.h"

#include <gtest/gtest.h>
#include <utf8proc.h>

#include <random>

namespace kivi {
namespace {

using Kind = Utf8Head::Kind;

void expect_head(std::string_view bytes, Kind kind, size_t size) {
  const Utf8Head head = utf8_head(bytes);
  EXPECT_EQ(head.kind, kind) << testing::PrintToString(bytes);
  EXPECT_EQ(head.size, size) << testing::PrintToString(bytes);
}

TEST(Unicode, HeadOfEveryCodePointAndItsBeginnings) {
  for (int32_t code_point = 0; code_point <= 0x10FFFF; ++code_point) {
    if (code_point >= 0xD800 && code_point < 0xE000) continue;
    utf8proc_uint8_t bytes[4];
    const auto size = static_cast<size_t>(utf8proc_encode_char(code_point, bytes));
    const std::string character(reinterpret_cast<const char*>(bytes), size);
    const Utf8Head head = utf8_head(character + "x");
    ASSERT_TRUE(head.kind == Kind::kCharacter && head.size == size) << code_point;
    for (size_t n = 0; n < size; ++n) ASSERT_EQ(utf8_head(character.substr(0, n)).kind, Kind::kTruncated) << code_point;
  }
}

TEST(Unicode, HeadOfInvalidBytes) {
  expect_head("\x80", Kind::kInvalid, 1);
  expect_head("\xC0\xAF", Kind::kInvalid, 1);          // overlong
  expect_head("\xE0\x9F\xBF", Kind::kInvalid, 1);      // overlong
  expect_head("\xED\xA0\x80", Kind::kInvalid, 1);      // surrogate
  expect_head("\xF4\x90\x80\x80", Kind::kInvalid, 1);  // above U+10FFFF
  expect_head("\xF5\x80\x80\x80", Kind::kInvalid, 1);
  expect_head("\xE2\x82x", Kind::kInvalid, 2);
  expect_head("\xF0\x9F\x98\xC2", Kind::kInvalid, 3);
}

TEST(Unicode, ValidPrefixIsWhatUtf8procReads) {
  std::mt19937 random(5);
  for (int round = 0; round < 20000; ++round) {
    std::string bytes;
    for (auto n = random() % 8; n > 0; --n) bytes += "a\xC3\xA9\xE0\xA0\xED\x9F\xBF\xF0\x90\x80\xF4\x8F"[random() % 14];
    size_t expected = 0;
    while (expected < bytes.size()) {
      int32_t code_point;
      const auto size = utf8proc_iterate(reinterpret_cast<const utf8proc_uint8_t*>(bytes.data()) + expected,
                                         static_cast<utf8proc_ssize_t>(bytes.size() - expected), &code_point);
      if (size <= 0) break;
      expected += static_cast<size_t>(size);
    }
    ASSERT_EQ(valid_utf8_prefix(bytes), expected) << testing::PrintToString(bytes);
  }
}

TEST(Unicode, NfcComposesAndOrdersMarks) {
  EXPECT_EQ(nfc("plain \xC3\xA9"), "plain \xC3\xA9");
  EXPECT_EQ(nfc("e\xCC\x81"), "\xC3\xA9");
  EXPECT_EQ(nfc("e\xCC\x82\xCC\xA3"), "\xE1\xBB\x87");                     // circumflex, dot below: ệ
  EXPECT_EQ(nfc("\xE1\x84\x80\xE1\x85\xA1\xE1\x86\xA8"), "\xEA\xB0\x81");  // Hangul jamo: 각
  EXPECT_EQ(nfc("\xE0\xA5\x98"), "\xE0\xA4\x95\xE0\xA4\xBC");              // excluded from composition
  EXPECT_EQ(nfc("\xE2\x84\xAB"), "\xC3\x85");                              // Angstrom sign
}

TEST(Unicode, NfcAgreesWithUtf8proc) {
  std::mt19937 random(7);
  const int32_t starts[] = {'a',    'e',    0x300, 0x316,  0x323,  0x344, 0x1100,
                            0x1161, 0x11A8, 0x958, 0x1EA0, 0xAC00, 0xF900};
  for (int round = 0; round < 5000; ++round) {
    std::string text;
    for (auto n = random() % 12; n > 0; --n) {
      utf8proc_uint8_t bytes[4];
      const auto code_point = starts[random() % std::size(starts)] + static_cast<int32_t>(random() % 8);
      text.append(reinterpret_cast<const char*>(bytes), static_cast<size_t>(utf8proc_encode_char(code_point, bytes)));
    }
    utf8proc_uint8_t* expected = utf8proc_NFC(reinterpret_cast<const utf8proc_uint8_t*>(text.c_str()));
    ASSERT_EQ(nfc(text), reinterpret_cast<const char*>(expected)) << testing::PrintToString(text);
    std::free(expected);
  }
}

TEST(Unicode, NfcOfALongRunOfMarksIsNotQuadratic) {
  std::string marks;
  for (int i = 0; i < 250'000; ++i) marks += "\xCC\x81";
  std::string below;
  for (int i = 0; i < 250'000; ++i) below += "\xCC\x96";
  EXPECT_EQ(nfc("x" + marks + below), "x" + below + marks);
}

TEST(Unicode, SpaceAtTheEnds) {
  EXPECT_EQ(leading_space(" \n\xE3\x80\x80x "), 5u);
  EXPECT_EQ(trailing_space(" x\xC2\x85 \xE2\x80\xA8"), 6u);
  EXPECT_EQ(leading_space("\xE2\x80\x8B"), 0u);  // U+200B is no white space
  EXPECT_EQ(trailing_space("x\x80\x80\x80\x80"), 0u);
  EXPECT_EQ(leading_space("  "), 2u);
  EXPECT_EQ(trailing_space(""), 0u);
}

TEST(Unicode, CompatibilityForm) {
  EXPECT_EQ(nfkc("a\xEF\xBC\xA1\xC2\xA0\xE2\x84\xAB"), "aA \xC3\x85");
}

}  // namespace
}  // namespace kivi
