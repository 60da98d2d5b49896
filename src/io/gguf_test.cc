#include "io/gguf.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <limits>
#include <string>
#include <vector>

#include "core/error.h"
#include "io/gguf_builder.h"

namespace kivi {
namespace {

using Ints = std::vector<int64_t>;

template <typename T>
T value(const ModelFile& file, const std::string& key) {
  return std::get<T>(file.metadata().at(key));
}

std::vector<float> decoded(const ModelTensor& tensor, int64_t row) {
  std::vector<float> out(static_cast<size_t>(tensor.view.cols));
  decode_row(tensor.view, row, out);
  return out;
}

std::string message_of(const auto& action) {
  try {
    action();
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

// The file was written by PyPI gguf: tests/golden/weights/make_golden.py.
TEST(Gguf, ReadsEveryMetadataType) {
  const ModelFile file = read_gguf(std::string(KIVI_SOURCE_DIR "/tests/golden/weights/metadata.gguf"));
  EXPECT_EQ(file.metadata().size(), 26U);
  EXPECT_EQ(value<int64_t>(file, "scalar.uint8"), 200);
  EXPECT_EQ(value<int64_t>(file, "scalar.int8"), -100);
  EXPECT_EQ(value<int64_t>(file, "scalar.uint16"), 60000);
  EXPECT_EQ(value<int64_t>(file, "scalar.int16"), -30000);
  EXPECT_EQ(value<int64_t>(file, "scalar.uint32"), 4000000000);
  EXPECT_EQ(value<int64_t>(file, "scalar.int32"), -2000000000);
  EXPECT_EQ(value<uint64_t>(file, "scalar.uint64"), std::numeric_limits<uint64_t>::max());
  EXPECT_EQ(value<int64_t>(file, "scalar.int64"), std::numeric_limits<int64_t>::min());
  EXPECT_EQ(value<double>(file, "scalar.float32"), 0.5);
  EXPECT_EQ(value<double>(file, "scalar.float64"), 0.1);
  EXPECT_EQ(value<bool>(file, "scalar.bool"), true);
  EXPECT_EQ(value<std::string>(file, "scalar.string"), "gr\xc3\xbc\xc3\x9f");

  EXPECT_EQ(value<Ints>(file, "array.uint8"), Ints(3, 200));
  EXPECT_EQ(value<Ints>(file, "array.int8"), Ints(3, -100));
  EXPECT_EQ(value<Ints>(file, "array.uint16"), Ints(3, 60000));
  EXPECT_EQ(value<Ints>(file, "array.int16"), Ints(3, -30000));
  EXPECT_EQ(value<Ints>(file, "array.uint32"), Ints(3, 4000000000));
  EXPECT_EQ(value<Ints>(file, "array.int32"), Ints(3, -2000000000));
  EXPECT_EQ(value<Ints>(file, "array.uint64"), Ints({0, std::numeric_limits<int64_t>::max()}));
  EXPECT_EQ(value<Ints>(file, "array.int64"), Ints(3, std::numeric_limits<int64_t>::min()));
  EXPECT_EQ(value<Ints>(file, "array.bool"), Ints(3, 1));
  EXPECT_EQ(value<std::vector<double>>(file, "array.float32"), std::vector<double>(3, 0.5));
  EXPECT_EQ(value<std::vector<double>>(file, "array.float64"), std::vector<double>(3, 0.1));
  EXPECT_EQ(value<std::vector<std::string>>(file, "array.string"), std::vector<std::string>(3, "gr\xc3\xbc\xc3\x9f"));
}

TEST(Gguf, FindsTensorsAtTheirAlignment) {
  const ModelFile file =
      read_gguf(std::string(KIVI_SOURCE_DIR "/tests/golden/weights/metadata.gguf"));  // aligned to 128
  const ModelTensor& cube = file.tensor("cube");
  EXPECT_EQ(cube.shape, Ints({4, 3, 2}));
  EXPECT_EQ(cube.view.format, WeightFormat::kF16);
  EXPECT_EQ(cube.view.rows, 6);
  EXPECT_EQ(cube.view.size_bytes(), 48);
  EXPECT_EQ(decoded(cube, 5), std::vector<float>({20, 21, 22, 23}));
  EXPECT_EQ(decoded(file.tensor("vector"), 0), std::vector<float>({1.5F, -2.5F}));
  EXPECT_EQ(file.find_tensor("square"), nullptr);
}

TEST(Gguf, ReadsVersion2AndItsOwnBuilder) {
  const std::vector<float> values = {1, 2, 3, 4, 5, 6};
  const auto bytes = GgufBuilder(2).set("answer", 42).add("a", {3, 2}, values).add("b", {6}, values).build();
  const ModelFile file = read_gguf(std::span(bytes));
  EXPECT_EQ(file.get_int("answer"), 42);
  EXPECT_EQ(decoded(file.tensor("a"), 1), std::vector<float>({4, 5, 6}));
  EXPECT_EQ(decoded(file.tensor("b"), 0), values);
}

TEST(Gguf, KeepsItsTensorsWhenMoved) {
  ModelFile first = read_gguf(std::string(KIVI_SOURCE_DIR "/tests/golden/weights/metadata.gguf"));
  const ModelFile second = std::move(first);
  EXPECT_EQ(decoded(second.tensor("cube"), 0), std::vector<float>({0, 1, 2, 3}));
}

TEST(Gguf, GivesMetadataByKind) {
  const auto bytes = GgufBuilder()
                         .set("int", uint32_t{7})
                         .set("huge", std::numeric_limits<uint64_t>::max())
                         .set("float", 2.5F)
                         .set("bool", true)
                         .set("string", "text")
                         .set("ints", std::vector<int32_t>{1, 2})
                         .set("floats", std::vector<float>{0.5F})
                         .set("strings", std::vector<std::string>{"a", ""})
                         .build();
  const ModelFile file = read_gguf(std::span(bytes));
  EXPECT_EQ(file.get_int("int"), 7);
  EXPECT_EQ(file.get_float("int"), 7.0);
  EXPECT_EQ(file.get_float("float"), 2.5);
  EXPECT_EQ(file.find_bool("bool"), true);
  EXPECT_EQ(file.get_string("string"), "text");
  EXPECT_EQ(*file.find_ints("ints"), Ints({1, 2}));
  EXPECT_EQ(*file.find_floats("floats"), std::vector<double>{0.5});
  EXPECT_EQ(*file.find_strings("strings"), (std::vector<std::string>{"a", ""}));

  EXPECT_EQ(file.find_int("none"), std::nullopt);
  EXPECT_EQ(file.find_float("none"), std::nullopt);
  EXPECT_EQ(file.find_strings("none"), nullptr);
  EXPECT_EQ(message_of([&] { file.get_int("none"); }), "memory: metadata key 'none' is missing");
  EXPECT_EQ(message_of([&] { file.get_int("float"); }), "memory: metadata key 'float' is a float, must be an integer");
  EXPECT_EQ(message_of([&] { file.find_float("string"); }),
            "memory: metadata key 'string' is a string, must be a float");
  EXPECT_EQ(message_of([&] { file.find_ints("strings"); }),
            "memory: metadata key 'strings' is an array of strings, must be an array of integers");
  EXPECT_EQ(message_of([&] { file.get_int("huge"); }),
            "memory: metadata key 'huge' is an integer beyond 2^63 - 1, must be an integer");
  EXPECT_EQ(message_of([&] { file.tensor("none"); }), "memory: tensor 'none' is missing");
}

TEST(Gguf, ReadsARealModel) {
  const std::string path = KIVI_SOURCE_DIR "/models/smollm2-135m.gguf";
  if (!std::filesystem::exists(path)) {
    ASSERT_EQ(std::getenv("KIVI_REQUIRE_MODEL"), nullptr) << path << " is missing; run tools/get-model smollm2-135m";
    GTEST_SKIP() << "run tools/get-model smollm2-135m to include this test";
  }
  const ModelFile file = read_gguf(path);
  EXPECT_EQ(file.get_string("general.architecture"), "llama");
  EXPECT_EQ(file.get_int("llama.block_count"), 30);
  EXPECT_EQ(file.get_float("llama.rope.freq_base"), 100000.0);
  EXPECT_EQ(file.find_strings("tokenizer.ggml.tokens")->size(), 49152U);
  EXPECT_EQ(file.find_strings("tokenizer.ggml.merges")->size(), 48900U);
  EXPECT_EQ(file.tensors().size(), 272U);
  EXPECT_EQ(file.tensor("token_embd.weight").view.format, WeightFormat::kQ8_0);
  const ModelTensor& down = file.tensor("blk.29.ffn_down.weight");
  EXPECT_EQ(down.shape, Ints({1536, 576}));
  EXPECT_EQ(down.view.format, WeightFormat::kQ4_1);
  for (const float weight : decoded(down, 575)) EXPECT_LT(std::abs(weight), 10.0F);
}

}  // namespace
}  // namespace kivi
