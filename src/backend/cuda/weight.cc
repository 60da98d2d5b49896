#include "backend/cuda/weight.h"

#include <algorithm>
#include <cstring>
#include <type_traits>
#include <vector>

#include "backend/cuda/dispatch.h"
#include "backend/require.h"
#include "core/parallel.h"

namespace kivi::cuda {
namespace {

int64_t total_rows(std::span<const WeightView> parts) {
  int64_t rows = 0;
  for (const WeightView& part : parts) {
    require_extent("weight: columns of a part", part.cols, parts.front().cols);
    rows += part.rows;
  }
  return rows;
}

template <typename T>
constexpr WeightFormat kFormatOf = std::is_same_v<T, Half> ? WeightFormat::kF16 : WeightFormat::kBF16;

Half rounded(float value, Half) {
  return to_half(std::clamp(value, -kHalfMax, kHalfMax));
}
BFloat16 rounded(float value, BFloat16) {
  constexpr float kMax = to_float(BFloat16{0x7F7F});
  return to_bfloat16(std::clamp(value, -kMax, kMax));
}

template <typename T>
void decode_rows(const WeightView& weight, int64_t begin, int64_t end, T* out) {
  if (weight.format == kFormatOf<T>) {
    std::memcpy(out, weight.row(begin), static_cast<size_t>((end - begin) * weight.cols) * sizeof(T));
    return;
  }
  std::vector<float> row(static_cast<size_t>(weight.cols));
  for (int64_t r = begin; r < end; ++r) {
    decode_row(weight, r, row);
    for (const float value : row) *out++ = rounded(value, T{});
  }
}

// Rows of the part, decoded by all cores straight into pinned memory, as many at a time as it holds.
template <typename T>
void upload_rows(const WeightView& part, T* to, Staging& staging) {
  const int64_t cols = std::max<int64_t>(1, part.cols);
  const int64_t most = static_cast<int64_t>(Staging::kSlotBytes / sizeof(T)) / cols;
  const int64_t grain = std::max<int64_t>(1, 16384 / cols);  // some ten microseconds
  for (int64_t first = 0; first < part.rows; first += most) {
    const int64_t n = std::min(most, part.rows - first);
    staging.upload_from(to + first * part.cols, static_cast<size_t>(n * part.cols) * sizeof(T), [&](std::byte* slot) {
      parallel_for(physical_cores(), n, grain, [&](int64_t begin, int64_t end) {
        decode_rows(part, first + begin, first + end, reinterpret_cast<T*>(slot) + begin * part.cols);
      });
    });
  }
}

}  // namespace

Matrix::Matrix(int64_t rows, int64_t cols, DType dtype, const Stream& stream)
    : Weight(rows, cols), dtype_(dtype), buffer_(static_cast<size_t>(rows * cols) * size_bytes(dtype), stream) {}

std::unique_ptr<Matrix> load_matrix(std::span<const WeightView> parts, DType dtype, const Stream& stream,
                                    Staging& staging) {
  if (parts.empty()) fail(ErrorCode::kInternal, "weight: no parts");
  constexpr size_t kMostCols = Staging::kSlotBytes / sizeof(Half);
  const int64_t cols = parts.front().cols;
  if (cols > static_cast<int64_t>(kMostCols)) {
    fail(ErrorCode::kUnsupported, "a weight with {} columns: at most {} are supported", cols, kMostCols);
  }
  auto matrix = std::make_unique<Matrix>(total_rows(parts), cols, dtype, stream);
  with_16_bits(dtype, "weight", [&](auto element) {
    auto* to = static_cast<decltype(element)*>(matrix->data());
    for (const WeightView& part : parts) {
      upload_rows(part, to, staging);
      to += part.rows * cols;
    }
  });
  return matrix;
}

const Matrix& matrix_of(const Weight* weight) {
  const auto* matrix = dynamic_cast<const Matrix*>(weight);
  if (matrix == nullptr) fail(ErrorCode::kInternal, "weight: missing, or loaded by another backend");
  return *matrix;
}

}  // namespace kivi::cuda
