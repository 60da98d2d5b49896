#include "cache/kv_config.h"

#include <gtest/gtest.h>

#include "cache/kv_memory.h"
#include "core/error.h"

namespace kivi {
namespace {

constexpr KvShape kSmol{.n_layers = 30, .n_kv_heads = 3, .head_dim = 64};

std::string message_of(const auto& action) {
  try {
    action();
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

TEST(KvConfig, ThePaperPresets) {
  const KvConfig config = parse_kv_config("kivi2");
  EXPECT_EQ(config.key_policy(), (format::WindowPolicy{.sinks = 0, .keep = 0, .flush = 128}));
  EXPECT_EQ(config.value_policy(), (format::WindowPolicy{.sinks = 0, .keep = 128, .flush = 1}));
  EXPECT_DOUBLE_EQ(config.layout(kSmol).bits_per_element(), 3.0);
  EXPECT_DOUBLE_EQ(parse_kv_config("kivi4").layout(kSmol).bits_per_element(), 5.0);
  EXPECT_FALSE(parse_kv_config("f16").is_packed());
}

TEST(KvConfig, FieldsAreSetApart) {
  const KvConfig config = parse_kv_config("kivi2:group-size=64:residual=64:sinks=4:key-bits=4:value-bits=8");
  EXPECT_EQ(config.group_size, 64);
  EXPECT_EQ(config.residual_length, 64);
  EXPECT_EQ(config.sinks, 4);
  EXPECT_EQ(config.key_bits, 4);
  EXPECT_EQ(config.value_bits, 8);
  EXPECT_EQ(config.name, "kivi2:group-size=64:residual=64:sinks=4:key-bits=4:value-bits=8");
}

TEST(KvConfig, ErrorsNameTheValueAndTheFix) {
  const auto parse = [](const char* text) { return message_of([=] { parse_kv_config(text).validate(kSmol); }); };
  EXPECT_EQ(parse("q4_0"), "KV preset 'q4_0': unknown; use one of f16, kivi4, kivi2, kivi-l, kivi-m, kivi-s");
  EXPECT_EQ(parse("kivi2:bits=3"),
            "KV setting 'bits': unknown; use group-size, residual, sinks, key-bits, value-bits or param-bits");
  EXPECT_EQ(parse("kivi2:sinks"), "KV setting 'sinks': write FIELD=VALUE, as in kivi2:sinks=4");
  EXPECT_EQ(parse("kivi2:sinks=x"), "sinks 'x': must be a whole number");
  EXPECT_EQ(parse("kivi2:sinks=-1"), "sinks -1: must be 0 to 4096");
  EXPECT_EQ(parse("kivi2:key-bits=5"), "key-bits 5: must be 2, 3, 4, 8 or 16 (16 is not quantised)");
  EXPECT_EQ(parse("kivi2:group-size=48"), "group-size 48: must divide the page of 128 tokens; use 16, 32, 64 or 128");
  EXPECT_EQ(parse("kivi2:residual=100"), "group-size 32: must divide residual 100; use a residual of 96 or 128");
}

TEST(KvMemory, CountsThePaperSetting) {
  // 1024 tokens: 1024 keys and 896 values packed at 3 bits, 128 values in 16 bits.
  const KvMemory memory = memory_of(kSmol, parse_kv_config("kivi2"), 1024);
  const int64_t row = 30 * 3 * 64;
  EXPECT_EQ(memory.packed_bytes(), row * (1024 + 896) * 3 / 8);
  EXPECT_EQ(memory.window_bytes, row * 128 * 2);
  EXPECT_EQ(memory.slack_bytes, row * 128 * 3 / 8);  // the eighth page has no values yet
  EXPECT_EQ(memory.elements, row * 1024 * 2);
}

}  // namespace
}  // namespace kivi
