#include "backend/cuda/weight.h"

#include <algorithm>
#include <cstring>
#include <vector>

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

void decode_rows(const WeightView& weight, int64_t begin, int64_t end, Half* out) {
  if (weight.format == WeightFormat::kF16) {
    std::memcpy(out, weight.row(begin), static_cast<size_t>((end - begin) * weight.cols) * sizeof(Half));
    return;
  }
  std::vector<float> row(static_cast<size_t>(weight.cols));
  for (int64_t r = begin; r < end; ++r) {
    decode_row(weight, r, row);
    for (const float value : row) *out++ = to_half(std::clamp(value, -kHalfMax, kHalfMax));
  }
}

}  // namespace

Matrix::Matrix(int64_t rows, int64_t cols, const Stream& stream)
    : Weight(rows, cols), buffer_(static_cast<size_t>(rows * cols) * sizeof(Half), stream) {}

std::unique_ptr<Matrix> load_matrix(std::span<const WeightView> parts, const Stream& stream, Staging& staging) {
  if (parts.empty()) fail(ErrorCode::kInternal, "weight: no parts");
  const int64_t cols = parts.front().cols;
  const auto row_bytes = static_cast<size_t>(std::max<int64_t>(1, cols)) * sizeof(Half);
  const auto most = static_cast<int64_t>(Staging::kSlotBytes / row_bytes);
  if (most == 0) {
    fail(ErrorCode::kUnsupported, "a weight with {} columns: at most {} are supported", cols,
         Staging::kSlotBytes / sizeof(Half));
  }
  auto matrix = std::make_unique<Matrix>(total_rows(parts), cols, stream);
  const int n_threads = physical_cores();
  const int64_t grain = std::max<int64_t>(1, 16384 / std::max<int64_t>(1, cols));  // some ten microseconds
  Half* to = matrix->data();
  for (const WeightView& part : parts) {
    for (int64_t first = 0; first < part.rows; first += most) {
      const int64_t n = std::min(most, part.rows - first);
      staging.upload_from(to, static_cast<size_t>(n * cols) * sizeof(Half), [&](std::byte* slot) {
        parallel_for(n_threads, n, grain, [&](int64_t begin, int64_t end) {
          decode_rows(part, first + begin, first + end, reinterpret_cast<Half*>(slot) + begin * cols);
        });
      });
      to += n * cols;
    }
  }
  return matrix;
}

const Matrix& matrix_of(const Weight* weight) {
  const auto* matrix = dynamic_cast<const Matrix*>(weight);
  if (matrix == nullptr) fail(ErrorCode::kInternal, "weight: missing, or loaded by another backend");
  return *matrix;
}

}  // namespace kivi::cuda
