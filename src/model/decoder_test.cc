// The decoder on every device, against itself on the reference and against a plain transformer written out here.
#include "model/decoder.h"

#include <gtest/gtest.h>

#include <cmath>
#include <memory>
#include <numeric>
#include <vector>

#include "backend/fake_device.h"
#include "backend/test_device.h"
#include "io/gguf.h"
#include "model/tiny_model.h"

namespace kivi {
namespace {

// How far logits, which are about 1 in size, may be from the reference's.
struct Tolerance {
  double plain;   // the largest difference, of f16 caches
  double packed;  // the mean square's root: a difference can move a code by one, which is a step of a group
};
// With f32 activations a key or value whose f32 and double sums fall on two sides of a rounding to binary16 differs by
// 2^-11 relatively, in each of two layers. With 16 bits there are ten roundings of activations about 1 in size on the
// way through each layer, which add up at random. The parity tests, which feed the same keys and values to all devices,
// are the strict ones.
Tolerance tolerance_of(DType activation) {
  switch (activation) {
    case DType::kF16:
      return {0x1p-6, 0.15};
    case DType::kBF16:
      return {0x1p-3, 0.3};
    default:
      return {2 * 0x1p-11, 5e-3};
  }
}

using Matrix = std::vector<std::vector<double>>;

// A model on a device with a cache, stepped by hand.
class Runner {
 public:
  Runner(const TinyModel& tiny, std::unique_ptr<Backend> backend, std::string_view kv)
      : bytes_(tiny.build().build()),
        file_(read_gguf(bytes_)),
        backend_(std::move(backend)),
        weights_(load_weights(*backend_, file_, read_config(file_))),
        decoder_(*backend_, weights_),
        cache_(*backend_, decoder_.kv_shape(), parse_kv_config(kv), {.max_tokens = 600, .max_sequences = 2}) {}

  SequenceId create() { return cache_.create(); }

  // Logits of all rows.
  Matrix step(std::vector<StepSequence> sequences, const std::vector<TokenId>& tokens) {
    EXPECT_TRUE(cache_.reserve(sequences));
    std::vector<int32_t> rows(tokens.size());
    std::iota(rows.begin(), rows.end(), 0);
    const auto logits = decoder_.step(cache_, {.tokens = tokens, .logit_rows = rows}).logits;
    Matrix out;
    for (int64_t i = 0; i < logits.shape[0]; ++i) out.emplace_back(&logits(i, 0), &logits(i, 0) + logits.shape[1]);
    return out;
  }

  const ModelFile& file() const { return file_; }
  const ModelConfig& config() const { return decoder_.config(); }
  Tolerance tolerance() const { return tolerance_of(backend_->activation_dtype()); }

 private:
  std::vector<std::byte> bytes_;
  ModelFile file_;
  std::unique_ptr<Backend> backend_;
  ModelWeights weights_;
  Decoder decoder_;
  KvCache cache_;
};

std::vector<TokenId> some_tokens(int n) {
  std::vector<TokenId> tokens(n);
  for (int i = 0; i < n; ++i) tokens[i] = (i * 17 + 5) % 50;
  return tokens;
}

// The transformer of the papers, from the file's tensors, in double, all tokens at once and nothing cached.
class PlainTransformer {
 public:
  PlainTransformer(const ModelFile& file, const ModelConfig& config) : file_(file), c_(config) {}

  Matrix logits(const std::vector<TokenId>& tokens) const {
    Matrix x;
    const Matrix embedding = matrix("token_embd.weight");
    for (const TokenId token : tokens) x.push_back(embedding[token]);
    for (int64_t layer = 0; layer < c_.n_layers; ++layer) {
      const std::string prefix = "blk." + std::to_string(layer) + ".";
      add(x, linear(attend(normalise(x, prefix + "attn_norm.weight"), prefix), prefix + "attn_output"));
      const Matrix in = normalise(x, prefix + "ffn_norm.weight");
      Matrix gate = linear(in, prefix + "ffn_gate");
      const Matrix up = linear(in, prefix + "ffn_up");
      for (size_t t = 0; t < gate.size(); ++t) {
        for (size_t i = 0; i < gate[t].size(); ++i) gate[t][i] *= up[t][i] / (1.0 + std::exp(-gate[t][i]));
      }
      add(x, linear(gate, prefix + "ffn_down"));
    }
    return linear(normalise(x, "output_norm.weight"), c_.tied_output ? "token_embd" : "output");
  }

 private:
  Matrix matrix(const std::string& name) const {
    const WeightView view = file_.tensor(name).view;
    Matrix out;
    for (int64_t r = 0; r < view.rows; ++r) {
      std::vector<float> row(view.cols);
      decode_row(view, r, row);
      out.emplace_back(row.begin(), row.end());
    }
    return out;
  }

  static void add(Matrix& x, const Matrix& y) {
    for (size_t t = 0; t < x.size(); ++t) {
      for (size_t i = 0; i < x[t].size(); ++i) x[t][i] += y[t][i];
    }
  }

  Matrix linear(const Matrix& x, const std::string& name) const {
    const Matrix w = matrix(name + ".weight");
    const Matrix bias = file_.find_tensor(name + ".bias") != nullptr ? matrix(name + ".bias") : Matrix();
    Matrix out;
    for (const auto& row : x) {
      auto& y = out.emplace_back();
      for (size_t r = 0; r < w.size(); ++r) {
        y.push_back(std::inner_product(row.begin(), row.end(), w[r].begin(), bias.empty() ? 0.0 : bias[0][r]));
      }
    }
    return out;
  }

  Matrix normalise(Matrix x, const std::string& name) const {
    const std::vector<double> weight = matrix(name)[0];
    for (auto& row : x) {
      const double squares = std::inner_product(row.begin(), row.end(), row.begin(), 0.0);
      const double scale = 1.0 / std::sqrt(squares / static_cast<double>(row.size()) + c_.rms_eps);
      for (size_t i = 0; i < row.size(); ++i) row[i] *= scale * weight[i];
    }
    return x;
  }

  void rotate(Matrix& x, int64_t heads) const {
    const auto half = static_cast<size_t>(c_.rope.n_dims / 2);
    const bool interleaved = c_.architecture->rope_pairing == RopePairing::kInterleaved;
    for (size_t t = 0; t < x.size(); ++t) {
      for (int64_t h = 0; h < heads; ++h) {
        double* head = &x[t][h * c_.head_dim];
        for (size_t i = 0; i < half; ++i) {
          const double exponent = -2.0 * static_cast<double>(i) / static_cast<double>(c_.rope.n_dims);
          const double angle = static_cast<double>(t) * std::pow(c_.rope.base, exponent);
          double& a = head[interleaved ? 2 * i : i];
          double& b = head[interleaved ? 2 * i + 1 : i + half];
          const double rotated = a * std::cos(angle) - b * std::sin(angle);
          b = a * std::sin(angle) + b * std::cos(angle);
          a = rotated;
        }
      }
    }
  }

  static void round_to_half(Matrix& x) {
    for (auto& row : x) {
      for (double& value : row) value = double{to_float(to_half(static_cast<float>(value)))};
    }
  }

  Matrix attend(const Matrix& x, const std::string& prefix) const {
    Matrix q = linear(x, prefix + "attn_q");
    Matrix k = linear(x, prefix + "attn_k");
    Matrix v = linear(x, prefix + "attn_v");
    rotate(q, c_.n_heads);
    rotate(k, c_.n_kv_heads);
    round_to_half(k);  // the cache is in 16 bits
    round_to_half(v);
    Matrix out(x.size(), std::vector<double>(static_cast<size_t>(c_.n_heads * c_.head_dim)));
    for (int64_t h = 0; h < c_.n_heads; ++h) {
      const int64_t kv = h / (c_.n_heads / c_.n_kv_heads);
      for (size_t t = 0; t < x.size(); ++t) {
        std::vector<double> weights;
        double total = 0;
        for (size_t s = 0; s <= t; ++s) {
          const double* a = &q[t][h * c_.head_dim];
          const double score = std::inner_product(a, a + c_.head_dim, &k[s][kv * c_.head_dim], 0.0);
          weights.push_back(std::exp(score / std::sqrt(static_cast<double>(c_.head_dim))));
          total += weights.back();
        }
        for (size_t s = 0; s <= t; ++s) {
          for (int64_t i = 0; i < c_.head_dim; ++i) {
            out[t][h * c_.head_dim + i] += weights[s] / total * v[s][kv * c_.head_dim + i];
          }
        }
      }
    }
    return out;
  }

  const ModelFile& file_;
  const ModelConfig& c_;
};

void expect_near(const Matrix& got, const Matrix& wanted, const std::string& what, double tolerance) {
  ASSERT_EQ(got.size(), wanted.size()) << what;
  for (size_t i = 0; i < got.size(); ++i) {
    for (size_t j = 0; j < got[i].size(); ++j) {
      ASSERT_NEAR(got[i][j], wanted[i][j], tolerance) << what << " row " << i << " token " << j;
    }
  }
}

// Devices of this machine, and one that rounds as a GPU does.
constexpr const char* kFake = "fake";

double root_mean_square_difference(const Matrix& a, const Matrix& b) {
  double squares = 0;
  double n = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    for (size_t j = 0; j < a[i].size(); ++j, ++n) squares += (a[i][j] - b[i][j]) * (a[i][j] - b[i][j]);
  }
  return std::sqrt(squares / n);
}

class DecoderTest : public testing::TestWithParam<TestDevice> {
 protected:
  // A head is as wide as every device takes it.
  static Runner make_runner(TinyModel tiny, std::string_view kv) {
    tiny.head_dim = 64;
    if (GetParam().name != kFake) return Runner(tiny, GetParam().make(), kv);
    return Runner(tiny, std::make_unique<FakeDevice>(FakeDeviceOptions{.activation = *GetParam().dtype}), kv);
  }
  static Runner make_reference(TinyModel tiny, std::string_view kv) {
    tiny.head_dim = 64;
    return Runner(tiny, make_backend({.device = "reference", .n_threads = 1}), kv);
  }
};

TEST_P(DecoderTest, EqualsAPlainTransformer) {
  for (const char* architecture : {"llama", "qwen2"}) {
    TinyModel tiny;
    tiny.architecture = architecture;
    tiny.qkv_bias = std::string_view(architecture) == "qwen2";
    tiny.tied_output = !tiny.qkv_bias;
    Runner runner = make_runner(tiny, "f16");
    const std::vector<TokenId> tokens = some_tokens(40);
    const Matrix wanted = PlainTransformer(runner.file(), runner.config()).logits(tokens);
    const Matrix got = runner.step({{runner.create(), 40}}, tokens);
    expect_near(got, wanted, architecture, runner.tolerance().plain);
  }
}

TEST_P(DecoderTest, TokenByTokenEqualsAllAtOnce) {
  Runner runner = make_runner({}, "f16");
  const std::vector<TokenId> tokens = some_tokens(70);
  const Matrix wanted = runner.step({{runner.create(), 70}}, tokens);
  const SequenceId id = runner.create();
  Matrix got;
  for (const TokenId token : tokens) got.push_back(runner.step({{id, 1}}, {token})[0]);
  expect_near(got, wanted, "token by token", runner.tolerance().plain);
}

// Presets that pack: the reference and the device must see the same cache, step after step.
TEST_P(DecoderTest, PackedPresetsEqualTheReference) {
  for (const char* kv : {"kivi2", "kivi4:sinks=4", "kivi2:residual=32:group-size=32"}) {
    Runner reference = make_reference({}, kv);
    Runner runner = make_runner({}, kv);
    const SequenceId ids[] = {reference.create(), runner.create()};
    const auto expect_close = [&](const std::vector<TokenId>& tokens) {
      const auto n = static_cast<int32_t>(tokens.size());
      const Matrix got = runner.step({{ids[1], n}}, tokens);
      const Matrix wanted = reference.step({{ids[0], n}}, tokens);
      EXPECT_LT(root_mean_square_difference(got, wanted), runner.tolerance().packed) << kv << ", " << n << " tokens";
    };
    expect_close(some_tokens(150));
    for (const TokenId token : some_tokens(12)) expect_close({token});
  }
}

TEST_P(DecoderTest, ABatchGivesTheSameBitsAsEachAlone) {
  if (GetParam().is_gpu()) GTEST_SKIP() << "a matrix product may be summed in another order there";
  Runner together = make_runner({}, "kivi2:residual=32");
  Runner alone = make_runner({}, "kivi2:residual=32");
  const SequenceId a = together.create();
  const SequenceId b = together.create();
  const SequenceId a_alone = alone.create();
  const SequenceId b_alone = alone.create();
  std::vector<TokenId> both = some_tokens(90);
  const std::vector<TokenId> tail = some_tokens(33);
  both.insert(both.end(), tail.begin(), tail.end());
  const Matrix prompts = together.step({{a, 90}, {b, 33}}, both);
  EXPECT_EQ(alone.step({{a_alone, 90}}, some_tokens(90)), Matrix(prompts.begin(), prompts.begin() + 90));
  EXPECT_EQ(alone.step({{b_alone, 33}}, tail), Matrix(prompts.begin() + 90, prompts.end()));
  for (const TokenId token : some_tokens(10)) {
    const Matrix logits = together.step({{a, 1}, {b, 1}}, {token, 7});
    ASSERT_EQ(alone.step({{a_alone, 1}}, {token})[0], logits[0]);
    ASSERT_EQ(alone.step({{b_alone, 1}}, {7})[0], logits[1]);
  }
}

std::vector<TestDevice> devices_and_fakes() {
  std::vector<TestDevice> devices = test_devices();
  for (const DType dtype : {DType::kF16, DType::kBF16}) devices.push_back({kFake, dtype});
  return devices;
}

INSTANTIATE_TEST_SUITE_P(EveryDevice, DecoderTest, testing::ValuesIn(devices_and_fakes()), test_name);

}  // namespace
}  // namespace kivi
