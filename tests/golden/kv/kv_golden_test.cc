// The quantiser, Algorithm 1, the paged reference and what CPU devices store, against what generate.py wrote: an
// implementation in NumPy that knows the paper and docs/packed-format.md and none of this code.
#include <gtest/gtest.h>

#include <bit>
#include <cstring>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "backend/reference/paged.h"
#include "crc32.h"
#include "host_cache.h"
#include "quantise_group.h"
#include "reference/algorithm1.h"

namespace kivi::golden {
namespace {

using nlohmann::json;
using reference::Row;

// Largest |difference| of an attention output: both sides sum in double; the result, of size below 2, is rounded to
// float once.
constexpr float kOutputTolerance = 1e-6F;

std::string golden_file(const std::string& name) {
  const std::string path = std::string(KIVI_SOURCE_DIR) + "/tests/golden/kv/" + name;
  std::ifstream file(path, std::ios::binary);
  EXPECT_TRUE(file.is_open()) << path;
  return {std::istreambuf_iterator<char>(file), {}};
}

json golden_index() {
  return json::parse(golden_file("index.json"));
}

// A binary file read from front to back.
class Stream {
 public:
  explicit Stream(const std::string& name) : bytes_(golden_file(name)) {}
  template <typename T>
  std::vector<T> take(size_t n) {
    if (n * sizeof(T) > bytes_.size() - at_) throw std::runtime_error("golden data ends early");
    std::vector<T> out(n);
    std::memcpy(out.data(), bytes_.data() + at_, n * sizeof(T));
    at_ += n * sizeof(T);
    return out;
  }
  bool at_end() const { return at_ == bytes_.size(); }

 private:
  std::string bytes_;
  size_t at_ = 0;
};

void check_family(const json& family, Stream& data) {
  const int bits = family["bits"];
  const size_t groups = family["groups"];
  const size_t n = family["n"];
  const size_t n_words = n * bits / 32;
  const auto x = data.take<float>(groups * n);
  const auto scales = data.take<uint16_t>(groups);
  const auto zeros = data.take<uint16_t>(groups);
  const auto words = data.take<uint32_t>(groups * n_words);
  const auto values = data.take<float>(groups * n);
  for (size_t g = 0; g < groups; ++g) {
    SCOPED_TRACE(family["name"].get<std::string>() + ", " + std::to_string(bits) + " bits, group " + std::to_string(g));
    const QuantisedGroup got = quantise_group(std::span(x).subspan(g * n, n), bits);
    EXPECT_EQ(got.params.scale.bits, scales[g]);
    EXPECT_EQ(got.params.zero.bits, zeros[g]);
    EXPECT_EQ(got.words, std::vector(words.begin() + g * n_words, words.begin() + (g + 1) * n_words));
    EXPECT_EQ(got.values, std::vector(values.begin() + g * n, values.begin() + (g + 1) * n));
  }
}

uint64_t splitmix64(uint64_t n) {
  uint64_t z = (n + 1) * 0x9E3779B97F4A7C15U;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9U;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBU;
  return z ^ (z >> 31);
}

enum InputSide : uint64_t { kQueries, kKeys, kValues };

// generate.py, number().
float input_number(uint64_t seed, InputSide side, uint64_t token, uint64_t channel) {
  if (side == kKeys && channel == 7) return 0.5F;
  if (side == kValues && token % 16 == 9) return -0.75F;
  const uint64_t bits = splitmix64((seed << 32) + (uint64_t{side} << 24) + (token << 8) + channel);
  int total = -510;
  for (int i = 0; i < 4; ++i) total += static_cast<int>(bits >> (8 * i) & 255);
  const float x = static_cast<float>(total) / 256.0F;
  return side == kKeys && channel % 13 == 5 ? x * 8.0F : x;
}

// One case of the index, with what the code under test needs of it.
struct Case {
  explicit Case(const json& entry) : seed(entry["seed"]), dtype(entry["dtype"] == "bf16" ? DType::kBF16 : DType::kF16) {
    layout = {.n_kv_heads = 1,
              .head_dim = entry["head_dim"],
              .key_bits = entry["key_bits"],
              .value_bits = entry["value_bits"],
              .key_group = entry["key_group"],
              .value_group = entry["value_group"]};
    key_policy = policy(entry["key_policy"], layout.key_bits);
    value_policy = policy(entry["value_policy"], layout.value_bits);
  }

  static format::WindowPolicy policy(const json& numbers, int bits) {
    if (bits == 0) return {.sinks = numbers[0]};
    return {.sinks = numbers[0], .keep = numbers[1], .flush = numbers[2]};
  }
  reference::Algorithm1Config listing() const {
    return {layout.key_bits, layout.value_bits, layout.key_group, layout.value_group,
            key_policy,      value_policy,      layout.params};
  }
  std::vector<Row> rows(InputSide side, int begin, int end) const {
    std::vector<Row> out;
    for (int token = begin; token < end; ++token) {
      Row& row = out.emplace_back();
      for (int c = 0; c < layout.head_dim; ++c) {
        const float x = input_number(seed, side, token, c);
        const uint32_t kept = dtype == DType::kBF16 ? 0xFFFF0000U : ~0U;
        row.push_back(std::bit_cast<float>(std::bit_cast<uint32_t>(x) & kept));
      }
    }
    return out;
  }

  uint64_t seed;
  DType dtype;
  format::PageLayout layout;
  format::WindowPolicy key_policy;
  format::WindowPolicy value_policy;
};

void expect_near(const Row& got, const Row& wanted, const char* what, int token) {
  ASSERT_EQ(got.size(), wanted.size());
  for (size_t c = 0; c < got.size(); ++c) {
    ASSERT_NEAR(got[c], wanted[c], kOutputTolerance) << what << ", token " << token << ", channel " << c;
  }
}

uint32_t crc32_of(const std::vector<Row>& rows) {
  std::vector<float> flat;
  for (const Row& row : rows) flat.insert(flat.end(), row.begin(), row.end());
  return crc32(std::as_bytes(std::span(flat)));
}

// Runs a prompt of run["n_prompt"] tokens and n_decode more; returns the bytes of the pages.
std::vector<std::byte> check_run(const Case& which, const json& run, int n_decode, float scale, Stream& outputs) {
  const int n_prompt = run["n_prompt"];
  const std::unique_ptr<Backend> backend = make_backend({.device = "reference", .n_threads = {}});
  reference::Algorithm1 listing(which.listing());
  HostCache cache(*backend, which.layout, which.key_policy, which.value_policy, which.dtype, n_prompt + n_decode);
  for (int begin = 0, end = n_prompt; end <= n_prompt + n_decode; begin = end, ++end) {
    const std::vector<Row> q = which.rows(kQueries, begin, end);
    const std::vector<Row> keys = which.rows(kKeys, begin, end);
    const std::vector<Row> values = which.rows(kValues, begin, end);
    const Row wanted = outputs.take<float>(which.layout.head_dim);
    expect_near(listing.step(q, keys, values, scale).back(), wanted, "Algorithm 1", end - 1);
    expect_near(cache.attend(q, keys, values, scale).back(), wanted, "paged", end - 1);
    cache.store(keys, values);
  }
  EXPECT_EQ(json::array({listing.n_packed_keys(), listing.n_packed_values()}), run["n_packed"]);

  const std::vector<Row> stored_keys = reference::stored_keys(cache.view(), 0, 0);
  const std::vector<Row> stored_values = reference::stored_values(cache.view(), 0, 0);
  EXPECT_EQ(stored_keys, listing.keys());
  EXPECT_EQ(stored_values, listing.values());
  EXPECT_EQ(crc32_of(stored_keys), run["keys_crc32"]);
  EXPECT_EQ(crc32_of(stored_values), run["values_crc32"]);

  std::vector<std::byte> pages = cache.packed_bytes();
  EXPECT_EQ(pages.size(), run["pages_bytes"]);
  EXPECT_EQ(crc32(pages), run["pages_crc32"]);
  return pages;
}

void expect_equal_bytes(const std::vector<std::byte>& got, const std::vector<std::byte>& wanted) {
  ASSERT_EQ(got.size(), wanted.size());
  const auto [at, other] = std::mismatch(got.begin(), got.end(), wanted.begin());
  EXPECT_EQ(at, got.end()) << "first difference at byte " << at - got.begin();
}

// A CPU device must store the same bytes.
void check_devices(const Case& which, int n_prompt, int n_decode, const std::vector<std::byte>& pages) {
  if (which.dtype != DType::kF16) return;  // the CPU's window is binary16
  for (const std::string& device : available_devices()) {
    if (!device.starts_with("cpu")) continue;
    SCOPED_TRACE(device);
    const std::unique_ptr<Backend> backend = make_backend({.device = device, .n_threads = 1});
    HostCache cache(*backend, which.layout, which.key_policy, which.value_policy, which.dtype, n_prompt + n_decode);
    for (int begin = 0, end = n_prompt; end <= n_prompt + n_decode; begin = end, ++end) {
      cache.store(which.rows(kKeys, begin, end), which.rows(kValues, begin, end));
    }
    expect_equal_bytes(cache.packed_bytes(), pages);
  }
}

TEST(KvGolden, Quantiser) {
  const json index = golden_index();
  Stream data("quantiser.bin");
  ASSERT_FALSE(index["quantiser"].empty());
  for (const json& family : index["quantiser"]) check_family(family, data);
  EXPECT_TRUE(data.at_end());
}

TEST(KvGolden, AttentionAndPages) {
  const json index = golden_index();
  Stream outputs("outputs.bin");
  Stream all_pages("pages.bin");
  ASSERT_FALSE(index["attention"].empty());
  for (const json& entry : index["attention"]) {
    const Case which(entry);
    std::vector<std::byte> pages;
    for (const json& run : entry["runs"]) {
      SCOPED_TRACE(entry["name"].get<std::string>() + ", prompt " + run["n_prompt"].dump());
      pages = check_run(which, run, index["n_decode"], index["softmax_scale"], outputs);
    }
    SCOPED_TRACE(entry["name"].get<std::string>() + ", pages of the last run");
    const json& run = entry["runs"].back();
    const auto wanted = all_pages.take<std::byte>(run["pages_bytes"]);
    expect_equal_bytes(pages, wanted);
    check_devices(which, run["n_prompt"], index["n_decode"], wanted);
  }
  EXPECT_TRUE(outputs.at_end());
  EXPECT_TRUE(all_pages.at_end());
}

}  // namespace
}  // namespace kivi::golden
