#include "io/safetensors.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "core/error.h"
#include "io/safetensors_builder.h"

namespace kivi {
namespace {

using Builder = SafetensorsBuilder;

Tensors read(const std::string& file) {
  return read_safetensors(std::as_bytes(std::span(file)), "memory");
}

template <typename Read>
void expect_error(Read read, ErrorCode code, const std::string& message) {
  try {
    read();
    FAIL() << "no error; expected: " << message;
  } catch (const Error& error) {
    EXPECT_EQ(error.what(), message);
    EXPECT_EQ(error.code(), code);
  }
}
void expect_corrupt(const std::string& file, const std::string& message) {
  expect_error([&] { read(file); }, ErrorCode::kCorrupt, "memory: " + message);
}
void expect_corrupt(const Builder& builder, const std::string& message) {
  expect_corrupt(builder.build(), message);
}

TEST(Safetensors, ViewsPointIntoTheFile) {
  const std::string file = Builder()
                               .add_raw(R"("__metadata__":{"format":"pt"})")
                               .add("half", "F16", {2, 3}, 12)
                               .add_floats("b", {2}, {1.5F, -2.0F})
                               .add("brain", "BF16", {2, 2, 4}, 32)
                               .add("scalar", "F32", {}, 4)
                               .build();
  const Tensors tensors = read(file);
  ASSERT_EQ(tensors.size(), 4U);
  const ModelTensor& half = tensors.at("half");
  EXPECT_EQ(half.shape, (std::vector<int64_t>{3, 2}));  // GGUF's order
  EXPECT_EQ(half.view.format, WeightFormat::kF16);
  EXPECT_EQ(half.view.rows, 2);
  EXPECT_EQ(half.view.cols, 3);
  EXPECT_EQ(half.view.data, std::as_bytes(std::span(file)).data() + file.size() - 4 - 32 - 8 - 12);
  EXPECT_EQ(tensors.at("brain").view.rows, 4);
  EXPECT_EQ(tensors.at("brain").view.format, WeightFormat::kBF16);
  EXPECT_EQ(tensors.at("scalar").shape, (std::vector<int64_t>{1}));
  std::vector<float> b(2);
  decode_row(tensors.at("b").view, 0, b);
  EXPECT_EQ(b, (std::vector<float>{1.5F, -2.0F}));
}

TEST(BrokenSafetensors, Header) {
  expect_corrupt("abc",
                 "'the header's length' needs 8 bytes at byte 0, but the file has 3; it is truncated, fetch it again");
  expect_corrupt(
      std::string(8, '\xff') + "{}",
      "has a header of 18446744073709551615 bytes, but only 2 follow; it is truncated or no safetensors file, "
      "fetch it again");
  expect_corrupt(Builder::with_header("{\"a\":"), "is not JSON from byte 5 on; fetch the file again");
  expect_corrupt(Builder::with_header("[1]"), "is JSON, but not an object; fetch the file again");
  expect_corrupt(Builder::with_header(R"({"a":1e999})"), "has a number that is too large; fetch the file again");
}

TEST(BrokenSafetensors, Descriptions) {
  expect_corrupt(Builder().add_raw(R"("a":1)"), "tensor 'a' has no dtype");
  expect_corrupt(Builder().add_raw(R"("a":{"dtype":"F32","data_offsets":[0,0]})"), "tensor 'a' has no shape");
  expect_corrupt(Builder().add_raw(R"("a":{"dtype":"F32","shape":[1]})"), "tensor 'a' has no data_offsets");
  expect_corrupt(Builder().add_raw(R"("a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]})", 4),
                 "tensor 'a': shape must be numbers from 0 to 2^63 - 1");
  expect_corrupt(Builder().add_raw(R"("a":{"dtype":"F32","shape":"2","data_offsets":[0,4]})", 4),
                 "tensor 'a': shape must be numbers from 0 to 2^63 - 1");
  expect_corrupt(Builder().add("a", "F32", {0, 2}, 0), "tensor 'a': a dimension is 0, must be above 0");
  expect_corrupt(Builder().add_raw(R"("a":{"dtype":"F32","shape":[1],"data_offsets":[4,0]})", 4),
                 "tensor 'a': data_offsets are [4, 0], must be a begin and an end");
  expect_corrupt(Builder().add_raw(R"("a":{"dtype":"F32","shape":[1],"data_offsets":[0]})", 4),
                 "tensor 'a': data_offsets are [0], must be a begin and an end");
}

TEST(BrokenSafetensors, Types) {
  expect_error([] { read(Builder().add("a.qweight", "I32", {1}, 4).build()); }, ErrorCode::kUnsupported,
               "memory: tensor 'a.qweight' has type 'I32'; kivi reads F32, F16 and BF16 from safetensors");
  expect_error([] { read(Builder().add_raw(R"("a":{"dtype":7})").build()); }, ErrorCode::kUnsupported,
               "memory: tensor 'a' has type 'number'; kivi reads F32, F16 and BF16 from safetensors");
}

TEST(BrokenSafetensors, Extents) {
  expect_corrupt(Builder().add("a", "F16", {2, 3}, 10),
                 "tensor 'a' of shape [2, 3] in F16 does not take the 10 bytes that data_offsets give it");
  expect_corrupt(
      Builder().add("a", "F32", {int64_t{1} << 62, 4, 4}, 0),
      "tensor 'a' of shape [4611686018427387904, 4, 4] in F32 does not take the 0 bytes that data_offsets give "
      "it");
  const Builder overlap =
      Builder().add("a", "F32", {2}, 8).add_raw(R"("b":{"dtype":"F32","shape":[1],"data_offsets":[4,8]})");
  expect_corrupt(overlap, "tensor 'b' begins at byte 4 of the data, but the one before it ends at 8");
  const Builder gap = Builder().add_raw(R"("a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]})", 8);
  expect_corrupt(gap, "tensor 'a' begins at byte 4 of the data, but the one before it ends at 0");
  const Builder outside = Builder().add_raw(R"("a":{"dtype":"F32","shape":[3],"data_offsets":[0,12]})", 8);
  expect_corrupt(outside, "its tensors take 12 bytes, but 8 follow the header; it is truncated, fetch it again");
}

TEST(BrokenSafetensors, EveryTruncation) {
  const std::string file = Builder().add("a", "F16", {2, 3}, 12).add("b", "F32", {1}, 4).build();
  for (size_t size = 0; size < file.size(); ++size) {
    EXPECT_THROW(read(file.substr(0, size)), Error) << size;
  }
}

constexpr const char* kIndex = "model.safetensors.index.json";

TEST(SafetensorsFolder, OneFile) {
  const TemporaryFolder folder;
  folder.write("model.safetensors", Builder().add("a", "F32", {1}, 4).build());
  EXPECT_EQ(read_safetensors_folder(folder.path()).tensors.size(), 1U);
}

TEST(SafetensorsFolder, Shards) {
  const TemporaryFolder folder;
  folder.write("1.safetensors", Builder().add_floats("a", {1}, {3.0F}).build());
  folder.write("2.safetensors", Builder().add_floats("b", {1}, {4.0F}).build());
  folder.write(kIndex, R"({"metadata":{},"weight_map":{"a":"1.safetensors","b":"2.safetensors"}})");
  const SafetensorsFolder read = read_safetensors_folder(folder.path());
  EXPECT_EQ(read.files.size(), 2U);
  std::vector<float> b(1);
  decode_row(read.tensors.at("b").view, 0, b);
  EXPECT_EQ(b[0], 4.0F);
}

TEST(SafetensorsFolder, WhatIsMissing) {
  const TemporaryFolder folder;
  const auto expect = [&](ErrorCode code, const std::string& message) {
    expect_error([&] { read_safetensors_folder(folder.path()); }, code, folder.path() + message);
  };
  expect(ErrorCode::kNotFound,
         ": has neither model.safetensors nor model.safetensors.index.json; kivi reads weights in these or in a GGUF "
         "file");
  folder.write("1", Builder().add("a", "F32", {1}, 4).build());
  folder.write(kIndex, R"({"weight_map":{"a":"1","b":"2"}})");
  expect(ErrorCode::kNotFound, ": has no '2', which its index names; fetch that file");
  folder.write(kIndex, R"({"weight_map":{"a":"1","b":"1"}})");
  expect(ErrorCode::kCorrupt,
         "/model.safetensors.index.json: names tensor 'b' in '1', which does not have it; fetch both again");
  folder.write("2", Builder().add("a", "F32", {1}, 4).build());
  folder.write(kIndex, R"({"weight_map":{"a":"1","c":"2"}})");
  expect(ErrorCode::kCorrupt, "/2: tensor 'a' is in another file of the folder, too");
}

TEST(SafetensorsFolder, BrokenIndex) {
  const TemporaryFolder folder;
  const auto expect = [&](const std::string& index, const std::string& message) {
    folder.write(kIndex, index);
    expect_error([&] { read_safetensors_folder(folder.path()); }, ErrorCode::kCorrupt,
                 folder.path(kIndex) + ": " + message);
  };
  expect("{}", "has no weight_map that names a tensor's file; fetch it again");
  expect(R"({"weight_map":{}})", "has no weight_map that names a tensor's file; fetch it again");
  expect(R"({"weight_map":{"a":1}})", "the file of tensor 'a' is '', must be a file's name");
  expect(R"({"weight_map":{"a":"../b"}})", "the file of tensor 'a' is '../b', must be a file's name");
  expect(R"({"weight_map":{"a":".."}})", "the file of tensor 'a' is '..', must be a file's name");
}

}  // namespace
}  // namespace kivi
