// Weights on the device: a 16-bit matrix, whatever the file has.
#pragma once

#include <memory>
#include <span>

#include "backend/backend.h"
#include "backend/cuda/device/buffer.h"
#include "backend/cuda/device/staging.h"

namespace kivi::cuda {

// Row-major, no gaps, f16.
class Matrix : public Weight {
 public:
  static constexpr DType kDType = DType::kF16;

  Matrix(int64_t rows, int64_t cols, const Stream& stream);
  Half* data() const { return reinterpret_cast<Half*>(buffer_.data()); }

 private:
  DeviceBuffer buffer_;
};

// The rows of all parts, one after the other, rounded to f16 on the way; values beyond its range become its largest.
// Decoded by all cores of the host. The parts need not outlive the call.
std::unique_ptr<Matrix> load_matrix(std::span<const WeightView> parts, const Stream& stream, Staging& staging);

// `weight` as the matrix it is. Throws Error{kInternal} if it is missing or of another backend.
const Matrix& matrix_of(const Weight* weight);

}  // namespace kivi::cuda
