#include "backend/cuda/device/cublas_lt.h"

#include <dlfcn.h>

#include <string>

#include "core/error.h"

namespace kivi::cuda {
namespace {

static_assert(CUBLAS_VER_MAJOR == 13);
constexpr const char* kLibrary = "libcublasLt.so.13";

void* open_library() {
  if (void* library = dlopen(kLibrary, RTLD_NOW | RTLD_LOCAL)) return library;
  const std::string why = dlerror();
  const std::string of_toolkit = std::string(KIVI_CUDA_LIBRARY_DIR "/") + kLibrary;  // not every install tells ld.so
  if (void* library = dlopen(of_toolkit.c_str(), RTLD_NOW | RTLD_LOCAL)) return library;
  fail(ErrorCode::kUnsupported, "device cuda: {}; install it, name its folder in LD_LIBRARY_PATH, or use --device cpu",
       why);
}

CublasLt load() {
  void* library = open_library();  // never closed
  const auto find = [&](auto& function, const char* name) {
    void* symbol = dlsym(library, name);
    if (symbol == nullptr) fail(ErrorCode::kUnsupported, "device cuda: {} has no {}", kLibrary, name);
    function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(symbol);
  };
  CublasLt lt{};
  find(lt.create, "cublasLtCreate");
  find(lt.destroy, "cublasLtDestroy");
  find(lt.status_string, "cublasLtGetStatusString");
  find(lt.layout_create, "cublasLtMatrixLayoutCreate");
  find(lt.layout_destroy, "cublasLtMatrixLayoutDestroy");
  find(lt.product_create, "cublasLtMatmulDescCreate");
  find(lt.product_destroy, "cublasLtMatmulDescDestroy");
  find(lt.product_set, "cublasLtMatmulDescSetAttribute");
  find(lt.preference_create, "cublasLtMatmulPreferenceCreate");
  find(lt.preference_destroy, "cublasLtMatmulPreferenceDestroy");
  find(lt.preference_set, "cublasLtMatmulPreferenceSetAttribute");
  find(lt.find_algorithm, "cublasLtMatmulAlgoGetHeuristic");
  find(lt.multiply, "cublasLtMatmul");
  return lt;
}

}  // namespace

const CublasLt& cublas_lt() {
  static const CublasLt lt = load();
  return lt;
}

}  // namespace kivi::cuda
