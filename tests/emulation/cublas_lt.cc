// cuBLASLt on the CPU, as far as the CUDA backend calls it: d = alpha a^T b + beta c, matrices by columns, summed in
// f32.
#include "backend/cuda/device/cublas_lt.h"

#include <vector>

#include "core/half.h"

struct cublasLtMatmulDescOpaque_t {
  cublasOperation_t a = CUBLAS_OP_N;
};
struct cublasLtMatrixLayoutOpaque_t {
  cudaDataType type;
  int64_t rows;
  int64_t cols;
  int64_t stride;

  float get(const void* data, int64_t row, int64_t col) const {
    const int64_t at = col * stride + row;
    switch (type) {
      case CUDA_R_16F:
        return kivi::to_float(static_cast<const kivi::Half*>(data)[at]);
      case CUDA_R_16BF:
        return kivi::to_float(static_cast<const kivi::BFloat16*>(data)[at]);
      default:
        return static_cast<const float*>(data)[at];
    }
  }
  void set(void* data, int64_t row, int64_t col, float x) const {
    const int64_t at = col * stride + row;
    switch (type) {
      case CUDA_R_16F:
        static_cast<kivi::Half*>(data)[at] = kivi::to_half(x);
        break;
      case CUDA_R_16BF:
        static_cast<kivi::BFloat16*>(data)[at] = kivi::to_bfloat16(x);
        break;
      default:
        static_cast<float*>(data)[at] = x;
    }
  }
  std::vector<float> column(const void* data, int64_t col) const {
    std::vector<float> all(static_cast<size_t>(rows));
    for (int64_t row = 0; row < rows; ++row) all[static_cast<size_t>(row)] = get(data, row, col);
    return all;
  }
};

namespace kivi::cuda {
namespace {

using Layout = cublasLtMatrixLayout_t;

void multiply(float alpha, const void* a, const cublasLtMatrixLayoutOpaque_t& a_layout, const void* b,
              const cublasLtMatrixLayoutOpaque_t& b_layout, float beta, const void* c, void* d,
              const cublasLtMatrixLayoutOpaque_t& d_layout) {
  std::vector<std::vector<float>> b_columns;
  for (int64_t col = 0; col < b_layout.cols; ++col) b_columns.push_back(b_layout.column(b, col));
  for (int64_t row = 0; row < a_layout.cols; ++row) {
    const std::vector<float> a_column = a_layout.column(a, row);
    for (int64_t col = 0; col < b_layout.cols; ++col) {
      float sum = 0.0F;
      const float* x = b_columns[static_cast<size_t>(col)].data();
#pragma omp simd reduction(+ : sum)
      for (size_t k = 0; k < a_column.size(); ++k) sum += a_column[k] * x[k];
      const float before = beta == 0.0F ? 0.0F : beta * d_layout.get(c, row, col);
      d_layout.set(d, row, col, alpha * sum + before);
    }
  }
}

CublasLt make() {
  CublasLt lt{};
  lt.create = [](cublasLtHandle_t* handle) {
    *handle = nullptr;
    return CUBLAS_STATUS_SUCCESS;
  };
  lt.destroy = [](cublasLtHandle_t) { return CUBLAS_STATUS_SUCCESS; };
  lt.status_string = [](cublasStatus_t) { return "an emulated status"; };
  lt.layout_create = [](Layout* layout, cudaDataType type, uint64_t rows, uint64_t cols, int64_t stride) {
    *layout = new cublasLtMatrixLayoutOpaque_t{type, static_cast<int64_t>(rows), static_cast<int64_t>(cols), stride};
    return CUBLAS_STATUS_SUCCESS;
  };
  lt.layout_destroy = [](Layout layout) {
    delete layout;
    return CUBLAS_STATUS_SUCCESS;
  };
  lt.product_create = [](cublasLtMatmulDesc_t* product, cublasComputeType_t, cudaDataType) {
    *product = new cublasLtMatmulDescOpaque_t;
    return CUBLAS_STATUS_SUCCESS;
  };
  lt.product_destroy = [](cublasLtMatmulDesc_t product) {
    delete product;
    return CUBLAS_STATUS_SUCCESS;
  };
  lt.product_set = [](cublasLtMatmulDesc_t product, cublasLtMatmulDescAttributes_t, const void* value, size_t) {
    product->a = *static_cast<const cublasOperation_t*>(value);
    return CUBLAS_STATUS_SUCCESS;
  };
  // Preferences change how fast it is only.
  lt.preference_create = [](cublasLtMatmulPreference_t* preference) {
    *preference = nullptr;
    return CUBLAS_STATUS_SUCCESS;
  };
  lt.preference_destroy = [](cublasLtMatmulPreference_t) { return CUBLAS_STATUS_SUCCESS; };
  lt.preference_set = [](cublasLtMatmulPreference_t, cublasLtMatmulPreferenceAttributes_t, const void*, size_t) {
    return CUBLAS_STATUS_SUCCESS;
  };
  lt.find_algorithm = [](cublasLtHandle_t, cublasLtMatmulDesc_t product, Layout a, Layout b, Layout c, Layout d,
                         cublasLtMatmulPreference_t, int, cublasLtMatmulHeuristicResult_t*, int* n_found) {
    const bool fits = product->a == CUBLAS_OP_T && a->rows == b->rows && d->rows == a->cols && d->cols == b->cols &&
                      c->rows == d->rows && c->cols == d->cols && a->stride >= a->rows && b->stride >= b->rows &&
                      d->stride >= d->rows;
    *n_found = fits ? 1 : 0;
    return fits ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_NOT_SUPPORTED;
  };
  lt.multiply = [](cublasLtHandle_t, cublasLtMatmulDesc_t, const void* alpha, const void* a, Layout a_layout,
                   const void* b, Layout b_layout, const void* beta, const void* c, Layout, void* d, Layout d_layout,
                   const cublasLtMatmulAlgo_t*, void*, size_t, cudaStream_t stream) {
    emulation::enqueue(stream, [=, alpha = *static_cast<const float*>(alpha), beta = *static_cast<const float*>(beta),
                                a_layout = *a_layout, b_layout = *b_layout, d_layout = *d_layout] {
      cuda::multiply(alpha, a, a_layout, b, b_layout, beta, c, d, d_layout);
    });
    return CUBLAS_STATUS_SUCCESS;
  };
  return lt;
}

}  // namespace

const CublasLt& cublas_lt() {
  static const CublasLt lt = make();
  return lt;
}

}  // namespace kivi::cuda
