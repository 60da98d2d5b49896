// Weights on the device: a 16-bit matrix, whatever the file has.
#pragma once

#include <memory>
#include <span>

#include "backend/backend.h"
#include "backend/cuda/device/buffer.h"
#include "backend/cuda/device/staging.h"

namespace kivi::cuda {

// Row-major, no gaps, f16 or bf16.
class Matrix : public Weight {
 public:
  Matrix(int64_t rows, int64_t cols, DType dtype, const Stream& stream);

  DType dtype() const { return dtype_; }
  void* data() const { return buffer_.data(); }

 private:
  DType dtype_;
  DeviceBuffer buffer_;
};

// The rows of all parts, one after the other, rounded to dtype on the way; values beyond its range become its largest.
// Decoded by all cores of the host. The parts need not outlive the call.
std::unique_ptr<Matrix> load_matrix(std::span<const WeightView> parts, DType dtype, const Stream& stream,
                                    Staging& staging);

// `weight` as the matrix it is. Throws Error{kInternal} if it is missing or of another backend.
const Matrix& matrix_of(const Weight* weight);

}  // namespace kivi::cuda
