#include "io/json_metadata.h"

#include <gtest/gtest.h>

#include <string>

#include "core/error.h"

namespace kivi {
namespace {

Metadata read(const std::string& text) {
  return read_json_metadata(std::as_bytes(std::span(text)), "memory");
}

TEST(JsonMetadata, Values) {
  const Metadata m = read(R"({"i":-3,"u":18446744073709551615,"f":1e-5,"b":true,"s":"text","none":null,
      "ints":[1,2],"bools":[true,false],"floats":[1,2.5],"strings":["a","b"],"empty":[],"mixed":[1,"a"],
      "nested":{"x":{"y":7}}})");
  EXPECT_EQ(m.at("i"), MetadataValue(int64_t{-3}));
  EXPECT_EQ(m.at("u"), MetadataValue(uint64_t{UINT64_MAX}));
  EXPECT_EQ(m.at("f"), MetadataValue(1e-5));
  EXPECT_EQ(m.at("b"), MetadataValue(true));
  EXPECT_EQ(m.at("s"), MetadataValue(std::string("text")));
  EXPECT_EQ(m.at("ints"), MetadataValue(std::vector<int64_t>{1, 2}));
  EXPECT_EQ(m.at("bools"), MetadataValue(std::vector<int64_t>{1, 0}));
  EXPECT_EQ(m.at("floats"), MetadataValue(std::vector<double>{1, 2.5}));
  EXPECT_EQ(m.at("strings"), MetadataValue(std::vector<std::string>{"a", "b"}));
  EXPECT_EQ(m.at("empty"), MetadataValue(std::vector<int64_t>{}));
  EXPECT_EQ(m.at("nested.x.y"), MetadataValue(int64_t{7}));
  EXPECT_EQ(m.size(), 11U);  // without null and the mixed array
}

TEST(JsonMetadata, Depth) {
  const auto nested = [](int depth) {
    std::string text;
    for (int i = 0; i < depth; ++i) text += "{\"a\":";
    return text + "1" + std::string(static_cast<size_t>(depth), '}');
  };
  EXPECT_EQ(read(nested(kDeepestJson)).size(), 1U);
  EXPECT_THROW(read(nested(kDeepestJson + 1)), Error);
  EXPECT_THROW(read(nested(100000)), Error);
}

TEST(JsonMetadata, Broken) {
  for (const char* text : {"", "[]", "3", "{", "{\"a\":1e999}", "{\"a\":\"\xff\"}", "{} {}"}) {
    EXPECT_THROW(read(text), Error) << text;
  }
}

}  // namespace
}  // namespace kivi
