#include "eval/attention_inputs.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "cache/kv_cache.h"
#include "core/error.h"
#include "model/slices.h"

namespace kivi {
namespace {

// The sum of four even numbers.
class NearlyNormal {
 public:
  float operator()() {
    const uint64_t bits = random_();
    int32_t sum = -2 * 0xFFFF;
    for (int shift = 0; shift < 64; shift += 16) sum += static_cast<int32_t>(bits >> shift & 0xFFFF);
    constexpr float kDeviation = 37837.0F;
    return static_cast<float>(sum) / kDeviation;
  }

 private:
  std::mt19937_64 random_{1};
};

// [rows, cols] random numbers, those of column c times scale(c).
template <typename Scale>
Tensor random_tensor(Backend& backend, DType dtype, int64_t rows, int64_t cols, const Scale& scale) {
  NearlyNormal random;
  Tensor tensor(backend, dtype, {rows, cols});
  std::vector<std::byte> host(tensor.size_bytes());
  const auto write = [&](auto narrow) {
    std::byte* at = host.data();
    for (int64_t i = 0; i < rows * cols; ++i) {
      const auto number = narrow(random() * scale(i % cols));
      std::memcpy(at, &number, sizeof(number));
      at += sizeof(number);
    }
  };
  if (dtype == DType::kF32) write([](float x) { return x; });
  if (dtype == DType::kF16) write([](float x) { return to_half(x); });
  if (dtype == DType::kBF16) write([](float x) { return to_bfloat16(x); });
  backend.copy_to_device(tensor.view().data, host.data(), host.size());
  return tensor;
}

template <typename T>
T read(const std::vector<std::byte>& bytes, size_t i) {
  T number;
  std::memcpy(&number, &bytes[i * sizeof(T)], sizeof(T));
  return number;
}

}  // namespace

AttentionInputs::AttentionInputs(Backend& backend, const AttentionShape& shape)
    : backend_(backend), shape_(shape), n_pool_(2 * std::max<int64_t>(kMostRows, shape.batch)) {
  const int64_t n_keys = int64_t{shape.kv_heads} * shape.head_dim;
  const auto key_scale = [&](int64_t column) {
    constexpr int64_t kLoudEach = 37;
    return column < n_keys && column % kLoudEach == 5 ? 6.0F : 1.0F;
  };
  const DType activation = backend.activation_dtype();
  pool_ = random_tensor(backend, window_dtype(activation), n_pool_, 2 * n_keys, key_scale);
  q_ = random_tensor(backend, activation, shape.batch, int64_t{shape.q_heads} * shape.head_dim,
                     [](int64_t) { return 1.0F; });
  out_ = Tensor(backend, activation, {shape.batch, int64_t{shape.q_heads} * shape.head_dim});
}

AnyView AttentionInputs::q() const {
  return as_heads(q_.view(), shape_.head_dim);
}
AnyView AttentionInputs::out() const {
  return as_heads(out_.view(), shape_.head_dim);
}

std::pair<AnyView, AnyView> AttentionInputs::keys_and_values(int64_t first, int64_t n) const {
  const int64_t width = int64_t{shape_.kv_heads} * shape_.head_dim;
  const AnyView rows = row_range(pool_.view(), first, n);
  return {as_heads(column_range(rows, 0, width), shape_.head_dim),
          as_heads(column_range(rows, width, width), shape_.head_dim)};
}

void AttentionInputs::check_output() const {
  std::vector<std::byte> bytes(out_.size_bytes());
  backend_.copy_to_host(bytes.data(), out_.view().data, bytes.size());
  std::vector<float> numbers(bytes.size() / size_bytes(out_.view().dtype));
  for (size_t i = 0; i < numbers.size(); ++i) {
    const DType dtype = out_.view().dtype;
    numbers[i] = dtype == DType::kF32   ? read<float>(bytes, i)
                 : dtype == DType::kF16 ? to_float(read<Half>(bytes, i))
                                        : to_float(read<BFloat16>(bytes, i));
  }
  const bool is_finite = std::all_of(numbers.begin(), numbers.end(), [](float x) { return std::isfinite(x); });
  const auto [least, most] = std::minmax_element(numbers.begin(), numbers.end());
  if (!is_finite || *least == *most) {
    fail(ErrorCode::kInternal, "attention of {} on {}: its result is {}", to_string(shape_), backend_.info().device,
         is_finite ? "the same everywhere" : "not finite");
  }
}

}  // namespace kivi
