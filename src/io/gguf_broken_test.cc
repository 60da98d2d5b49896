// What a broken file does: an Error that says what is wrong, never a crash.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cstring>
#include <string>
#include <vector>

#include "core/error.h"
#include "io/gguf.h"
#include "io/gguf_builder.h"

namespace kivi {
namespace {

using Bytes = std::vector<std::byte>;

constexpr uint32_t kF32 = GgufBuilder::type_number(WeightFormat::kF32);
constexpr uint64_t kHuge = uint64_t{1} << 62;

void expect_error(const Bytes& file, ErrorCode code, const std::string& message) {
  try {
    read_gguf(std::span(file));
    FAIL() << "no error; expected: " << message;
  } catch (const Error& error) {
    EXPECT_EQ(error.what(), "memory: " + message);
    EXPECT_EQ(error.code(), code);
  }
}

void expect_corrupt(const GgufBuilder& builder, const std::string& message) {
  expect_error(builder.build(), ErrorCode::kCorrupt, message);
}

GgufBuilder with_tensor(std::vector<uint64_t> shape, uint32_t type, size_t n_bytes = 64) {
  return GgufBuilder().add({"t", std::move(shape), type, Bytes(n_bytes)});
}

template <typename T>
void overwrite(Bytes& file, size_t at, T value) {
  std::memcpy(file.data() + at, &value, sizeof(T));
}

TEST(BrokenGguf, MagicAndVersion) {
  Bytes file = GgufBuilder().build();
  file[0] = std::byte{'g'};
  expect_error(file, ErrorCode::kCorrupt, "does not begin with 'GGUF'; give a model in GGUF format");
  for (const uint32_t version : {0U, 1U, 4U}) {
    expect_error(GgufBuilder(version).build(), ErrorCode::kUnsupported,
                 fmt::format("GGUF version {}: kivi reads versions 2 to 3; convert the model again", version));
  }
  expect_error(GgufBuilder(0x03000000).build(), ErrorCode::kUnsupported,
               "is a big-endian GGUF file; kivi reads little-endian ones");
}

TEST(BrokenGguf, Metadata) {
  const Bytes nested = {std::byte{9}, std::byte{}, std::byte{}, std::byte{}};
  expect_error(GgufBuilder().set_raw("k", 9, nested).build(), ErrorCode::kUnsupported,
               "metadata key 'k' is an array of arrays");
  expect_corrupt(GgufBuilder().set_raw("k", 13, {}), "metadata key 'k': value of type 13; types are 0 to 12");
  expect_corrupt(GgufBuilder().set_raw("k", 9, Bytes(4, std::byte{255})),
                 "metadata key 'k': array of type 4294967295; types are 0 to 12");
  expect_corrupt(GgufBuilder().set_raw("k", 7, Bytes(1, std::byte{2})), "metadata key 'k': bool is 2, must be 0 or 1");
  expect_corrupt(GgufBuilder().set("k", 1).set("k", 2), "metadata key 'k' occurs twice");
  expect_error(GgufBuilder().set("k", std::vector<uint64_t>{kHuge * 2}).build(), ErrorCode::kUnsupported,
               "metadata key 'k': array element 9223372036854775808 is beyond 2^63 - 1");
}

TEST(BrokenGguf, MessagesStayOnOneLine) {
  expect_corrupt(GgufBuilder().set("a\nb\xff", 1).set("a\nb\xff", 2), "metadata key 'a?b?' occurs twice");
  const std::string name(200, 'x');
  expect_corrupt(GgufBuilder().set(name, 1).set(name, 2),
                 "metadata key '" + std::string(80, 'x') + "...' occurs twice");
}

TEST(BrokenGguf, Alignment) {
  for (const uint32_t alignment : {0U, 24U}) {
    expect_corrupt(GgufBuilder().set("general.alignment", alignment), "general.alignment must be a power of two");
  }
  expect_corrupt(GgufBuilder().set("general.alignment", -32), "general.alignment must be a power of two");
  expect_corrupt(GgufBuilder().set("general.alignment", "32"), "general.alignment must be a power of two");
  // Beyond the file's end: nothing to find there, but nothing wrong either until a tensor wants it.
  const Bytes empty = GgufBuilder().set("general.alignment", kHuge).build();
  EXPECT_NO_THROW(read_gguf(std::span(empty)));
}

TEST(BrokenGguf, TensorShapes) {
  expect_corrupt(with_tensor({}, kF32), "tensor 't' has 0 dimensions; 1 to 4 are allowed");
  expect_corrupt(with_tensor({1, 1, 1, 1, 1}, kF32), "tensor 't' has 5 dimensions; 1 to 4 are allowed");
  expect_corrupt(with_tensor({4, 0}, kF32), "tensor 't': dimension 1 is 0, must be 1 to 2^63 - 1");
  expect_corrupt(with_tensor({kHuge * 2}, kF32),
                 "tensor 't': dimension 0 is 9223372036854775808, must be 1 to 2^63 - 1");
  expect_corrupt(with_tensor({48}, GgufBuilder::type_number(WeightFormat::kQ8_0)),
                 "tensor 't': rows of 48 elements are not whole blocks of Q8_0, which have 32");
  // Products that wrap around 64 bits to something small.
  using Shape = std::vector<uint64_t>;
  for (const Shape& shape : {Shape{kHuge}, Shape{kHuge, 4}, Shape{2, kHuge, 2}, Shape{1, 1, kHuge, kHuge}}) {
    const GgufBuilder builder = with_tensor(shape, kF32);
    expect_corrupt(builder, fmt::format("tensor 't' of shape [{}] in F32 is larger than the file, which has {} bytes; "
                                        "it is truncated, fetch it again",
                                        fmt::join(shape, ", "), builder.build().size()));
  }
}

TEST(BrokenGguf, TensorTypes) {
  const std::string supported = "; kivi reads F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q4_K, Q5_K, Q6_K";
  expect_error(with_tensor({256}, 11).build(), ErrorCode::kUnsupported, "tensor 't' has type 11 (Q3_K)" + supported);
  expect_error(with_tensor({256}, 4).build(), ErrorCode::kUnsupported, "tensor 't' has type 4 (unknown)" + supported);
  expect_error(with_tensor({256}, 999).build(), ErrorCode::kUnsupported,
               "tensor 't' has type 999 (unknown)" + supported);
}

TEST(BrokenGguf, TensorPlaces) {
  const Bytes data(64);
  // The data of one tensor of 64 bytes begins at byte 64.
  for (const uint64_t offset : {uint64_t{32}, kHuge}) {
    expect_corrupt(GgufBuilder().add({"t", {16}, kF32, data, offset}),
                   fmt::format("tensor 't' ends at byte {}, but the file has 128; it is truncated, fetch it again",
                               64 + offset + 64));
  }
  expect_corrupt(GgufBuilder().add({"t", {16}, kF32, data, ~uint64_t{31}}),
                 "tensor 't' ends at byte 18446744073709551584, but the file has 128; it is truncated, fetch it again");
  expect_corrupt(GgufBuilder().add({"t", {16}, kF32, data, 4}),
                 "tensor 't': offset 4 is not a multiple of the alignment, 32");
  expect_corrupt(GgufBuilder().add({"t", {16}, kF32, data}).add({"t", {16}, kF32, data}), "tensor 't' occurs twice");
}

TEST(BrokenGguf, CountsThatTheFileCannotHold) {
  for (const size_t at : {size_t{8}, size_t{16}}) {  // the numbers of tensors and of metadata entries
    Bytes file = GgufBuilder().set("k", 1).build();
    overwrite(file, at, ~uint64_t{0});
    EXPECT_THROW(read_gguf(std::span(file)), Error);
  }
  for (const uint32_t type : {0U, 6U, 8U, 12U}) {
    Bytes array(4 + 8);
    overwrite(array, 0, type);
    overwrite(array, 4, kHuge);
    expect_corrupt(GgufBuilder().set_raw("k", 9, array),
                   "'k' counts 4611686018427387904 items, but only 0 bytes follow it; fetch the file again");
  }
  Bytes text(8);
  overwrite(text, 0, ~uint64_t{0});
  expect_corrupt(
      GgufBuilder().set_raw("k", 8, text),
      "'k' needs 18446744073709551615 bytes at byte 45, but the file has 45; it is truncated, fetch it again");
}

// A small file with something of everything.
Bytes sample() {
  return GgufBuilder()
      .set("general.alignment", uint32_t{32})
      .set("bool", true)
      .set("float", 1.0F)
      .set("string", "text")
      .set("ints", std::vector<int16_t>{1, 2, 3})
      .set("bools", std::vector<bool>{true, false})
      .set("strings", std::vector<std::string>{"one", "", "three"})
      .add("matrix", {32, 2}, WeightFormat::kQ4_0, Bytes(2 * sizeof(BlockQ4_0)))
      .add("vector", {4}, std::vector<float>{1, 2, 3, 4})
      .build();
}

TEST(BrokenGguf, EveryTruncationIsAnError) {
  const Bytes whole = sample();
  ASSERT_NO_THROW(read_gguf(std::span(whole)));
  for (size_t size = 0; size < whole.size(); ++size) {
    const Bytes cut(whole.begin(), whole.begin() + static_cast<ptrdiff_t>(size));  // a copy: sanitizers see its end
    try {
      read_gguf(std::span(cut));
      ADD_FAILURE() << "no error at " << size << " of " << whole.size() << " bytes";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kCorrupt) << size << ": " << error.what();
    }
  }
}

TEST(BrokenGguf, EveryFlippedBitIsReadOrAnError) {
  const Bytes whole = sample();
  int n_errors = 0;
  for (size_t bit = 0; bit < 8 * whole.size(); ++bit) {
    Bytes flipped = whole;
    flipped[bit / 8] ^= std::byte{1} << (bit % 8);
    try {
      const ModelFile file = read_gguf(std::span(flipped));
      for (const auto& [name, tensor] : file.tensors()) {
        std::vector<float> row(static_cast<size_t>(tensor.view.cols));
        decode_row(tensor.view, tensor.view.rows - 1, row);
      }
    } catch (const Error&) {
      ++n_errors;
    }
  }
  EXPECT_GT(n_errors, 1000);
}

}  // namespace
}  // namespace kivi
