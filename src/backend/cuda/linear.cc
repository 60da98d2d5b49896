#include "backend/cuda/linear.h"

#include <algorithm>
#include <bit>
#include <compare>
#include <map>

#include "backend/cuda/device/cublas_lt.h"
#include "backend/cuda/kernels/elementwise.h"
#include "backend/cuda/weight.h"
#include "backend/require.h"

namespace kivi::cuda {
namespace {

constexpr size_t kWorkspaceBytes = size_t{32} << 20;  // what cuBLAS recommends for Hopper

void check(cublasStatus_t status, std::string_view operation) {
  if (status == CUBLAS_STATUS_SUCCESS) return;
  fail(ErrorCode::kInternal, "{}: cuBLASLt reports {}", operation, cublas_lt().status_string(status));
}

cudaDataType_t type_of(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return CUDA_R_32F;
    case DType::kF16:
      return CUDA_R_16F;
    case DType::kBF16:
      return CUDA_R_16BF;
    case DType::kI32:
      break;
  }
  fail(ErrorCode::kUnsupported, "linear: no kernel for {}", name(dtype));
}

// An object of the library, with the function that ends it.
template <typename Handle>
using Owned = std::unique_ptr<std::remove_pointer_t<Handle>, cublasStatus_t (*)(Handle)>;
using OwnedProduct = Owned<cublasLtMatmulDesc_t>;
using OwnedLayout = Owned<cublasLtMatrixLayout_t>;
using OwnedPreference = Owned<cublasLtMatmulPreference_t>;

// All that the library's choice depends on. The weight has the dtype of x.
struct Shape {
  int64_t n_tokens;
  int64_t rows;
  int64_t cols;
  int64_t x_stride;
  int64_t out_stride;
  DType x_dtype;
  DType out_dtype;
  uint32_t x_alignment;
  uint32_t out_alignment;

  friend auto operator<=>(const Shape&, const Shape&) = default;
};

// Bytes that the address is a multiple of, as far as kernels care.
uint32_t alignment_of(const void* data) {
  constexpr uint32_t kMost = 256;
  return uint32_t{1} << std::countr_zero(static_cast<uint32_t>(reinterpret_cast<uintptr_t>(data) % kMost) | kMost);
}

// A view of one row may have any row stride: nothing is ever that far away.
int64_t row_stride(const AnyView& view) {
  return view.shape[0] > 1 ? view.stride[0] : view.shape[1];
}

Shape shape_of(const LinearArgs& args) {
  return {.n_tokens = args.x.shape[0],
          .rows = args.weight->rows(),
          .cols = args.weight->cols(),
          .x_stride = row_stride(args.x),
          .out_stride = row_stride(args.out),
          .x_dtype = args.x.dtype,
          .out_dtype = args.out.dtype,
          .x_alignment = alignment_of(args.x.data),
          .out_alignment = alignment_of(args.out.data)};
}

void require_shapes(const LinearArgs& args) {
  const DType dtype = matrix_of(args.weight).dtype();
  require_extent("linear: rank of x", args.x.rank, 2);
  require_extent("linear: rank of out", args.out.rank, 2);
  require_extent("linear: columns of x", args.x.shape[1], args.weight->cols());
  require_extent("linear: rows of out", args.out.shape[0], args.x.shape[0]);
  require_extent("linear: columns of out", args.out.shape[1], args.weight->rows());
  if (!args.bias.empty()) {
    require_extent("linear: length of bias", args.bias.as<const float, 1>().shape[0], args.weight->rows());
  }
  const bool fits = args.out.dtype == DType::kF32 || (args.out.dtype == args.x.dtype && !args.accumulate);
  if (args.x.dtype != dtype || !fits) {
    fail(ErrorCode::kUnsupported, "linear: no kernel from {} with a weight of {} to {}{}", name(args.x.dtype),
         name(dtype), name(args.out.dtype), args.accumulate ? ", accumulating" : "");
  }
}

OwnedLayout make_layout(DType dtype, int64_t rows, int64_t cols, int64_t stride) {
  cublasLtMatrixLayout_t layout = nullptr;
  check(cublas_lt().layout_create(&layout, type_of(dtype), static_cast<uint64_t>(rows), static_cast<uint64_t>(cols),
                                  stride),
        "linear: describing a matrix");
  return {layout, cublas_lt().layout_destroy};
}

OwnedProduct make_product() {
  cublasLtMatmulDesc_t handle = nullptr;
  check(cublas_lt().product_create(&handle, CUBLAS_COMPUTE_32F, CUDA_R_32F), "linear: describing a product");
  OwnedProduct product(handle, cublas_lt().product_destroy);
  const cublasOperation_t transposed = CUBLAS_OP_T;
  check(cublas_lt().product_set(handle, CUBLASLT_MATMUL_DESC_TRANSA, &transposed, sizeof(transposed)),
        "linear: describing a product");
  return product;
}

OwnedPreference make_preference(const Shape& shape) {
  cublasLtMatmulPreference_t handle = nullptr;
  check(cublas_lt().preference_create(&handle), "linear: describing a preference");
  OwnedPreference preference(handle, cublas_lt().preference_destroy);
  const auto set = [&](cublasLtMatmulPreferenceAttributes_t attribute, const auto& value) {
    check(cublas_lt().preference_set(handle, attribute, &value, sizeof(value)), "linear: describing a preference");
  };
  set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, uint64_t{kWorkspaceBytes});
  // Partial sums of a split product stay in f32.
  set(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, uint32_t{CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE});
  // A weight starts its allocation and has the most alignment there is, as the library takes it to have.
  set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, shape.x_alignment);
  set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, shape.out_alignment);
  set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, shape.out_alignment);
  return preference;
}

}  // namespace

// The library, and how it does the shapes seen so far.
class Linear::Library {
 public:
  Library() { check(cublas_lt().create(&handle_), "starting cuBLASLt"); }
  Library(const Library&) = delete;
  Library& operator=(const Library&) = delete;
  ~Library() { cublas_lt().destroy(handle_); }

  void multiply(const LinearArgs& args, void* workspace, cudaStream_t stream) {
    const Matrix& weight = matrix_of(args.weight);
    const Plan& plan = plan_of(shape_of(args));
    const float one = 1.0F;
    const float keep = args.accumulate ? 1.0F : 0.0F;
    check(cublas_lt().multiply(handle_, plan.product.get(), &one, weight.data(), plan.weight.get(), args.x.data,
                               plan.x.get(), &keep, args.out.data, plan.out.get(), args.out.data, plan.out.get(),
                               &plan.algorithm, workspace, kWorkspaceBytes, stream),
          "linear");
  }

 private:
  struct Plan {
    OwnedProduct product;
    OwnedLayout weight, x, out;
    cublasLtMatmulAlgo_t algorithm;
  };

  const Plan& plan_of(const Shape& shape) {
    const auto found = plans_.find(shape);
    if (found != plans_.end()) return found->second;
    constexpr size_t kMostPlans = 4096;  // prompts of every length
    if (plans_.size() >= kMostPlans) plans_.clear();
    return plans_.emplace(shape, make_plan(shape)).first->second;
  }

  Plan make_plan(const Shape& shape) const {
    Plan plan{.product = make_product(),
              .weight = make_layout(shape.x_dtype, shape.cols, shape.rows, shape.cols),
              .x = make_layout(shape.x_dtype, shape.cols, shape.n_tokens, shape.x_stride),
              .out = make_layout(shape.out_dtype, shape.rows, shape.n_tokens, shape.out_stride),
              .algorithm = {}};
    const OwnedPreference preference = make_preference(shape);
    cublasLtMatmulHeuristicResult_t best{};
    int n_found = 0;
    const cublasStatus_t status =
        cublas_lt().find_algorithm(handle_, plan.product.get(), plan.weight.get(), plan.x.get(), plan.out.get(),
                                   plan.out.get(), preference.get(), 1, &best, &n_found);
    if (status != CUBLAS_STATUS_SUCCESS || n_found == 0) {
      fail(ErrorCode::kUnsupported, "linear: cuBLASLt has no kernel for [{}, {}] x [{}, {}]^T, {} to {} ({})",
           shape.n_tokens, shape.cols, shape.rows, shape.cols, name(shape.x_dtype), name(shape.out_dtype),
           cublas_lt().status_string(status));
    }
    plan.algorithm = best.algo;
    return plan;
  }

  cublasLtHandle_t handle_ = nullptr;
  std::map<Shape, Plan> plans_;
};

Linear::Linear(const Stream& stream)
    : stream_(&stream), workspace_(kWorkspaceBytes, stream), library_(std::make_unique<Library>()) {}
Linear::~Linear() = default;

void Linear::run(const LinearArgs& args) {
  require_shapes(args);
  if (args.x.shape[0] == 0) return;
  const cudaStream_t stream = stream_->enter();
  library_->multiply(args, workspace_.data(), stream);
  if (!args.bias.empty()) add_bias(args.out, args.bias, stream);
}

}  // namespace kivi::cuda
