// The seam to the optional CUDA backend: backend/cuda defines these where it is built, backend/no_cuda elsewhere.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "backend/backend.h"

namespace kivi {

std::vector<std::string> cuda_devices();  // "cuda:0", ...; empty without a GPU or without CUDA
std::unique_ptr<Backend> make_cuda_backend(int device, DType dtype, void* stream);

}  // namespace kivi
