// Matrix products, by cuBLASLt.
//
// Row-major y = x W^T is, to a library that counts by columns, y^T [rows, N] = W x^T: W as it lies is its transposed
// first factor [cols, rows], x as it lies its second [cols, N]. Products of 16-bit numbers are summed in f32 and
// rounded once; the order of the sum is the library's choice, and may differ with the number of rows of x.
#pragma once

#include <memory>

#include "backend/backend.h"
#include "backend/cuda/device/buffer.h"

namespace kivi::cuda {

class Linear {
 public:
  explicit Linear(const Stream& stream);  // which must outlive it
  ~Linear();

  // Allocates nothing on the device. The first product of a shape asks the library how to do it best.
  void run(const LinearArgs& args);

 private:
  class Library;
  const Stream* stream_;
  DeviceBuffer workspace_;
  std::unique_ptr<Library> library_;
};

}  // namespace kivi::cuda
