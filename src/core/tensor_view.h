// Views of memory that somebody else owns: a pointer, a shape and strides. A view never owns, a Tensor always does.
// The last dimension is contiguous in every view.
#pragma once

#include <array>
#include <cassert>
#include <cstdint>
#include <type_traits>

#include "core/dtype.h"
#include "core/error.h"
#include "core/host_device.h"

namespace kivi {

template <typename T, int Rank>
struct TensorView {
  T* data = nullptr;
  std::array<int64_t, Rank> shape{};
  std::array<int64_t, Rank> stride{};  // elements

  TensorView() = default;
  // A dense view: row-major, no gaps.
  TensorView(T* data_, std::array<int64_t, Rank> shape_) : data(data_), shape(shape_) {
    int64_t step = 1;
    for (int i = Rank - 1; i >= 0; --i) {
      stride[i] = step;
      step *= shape[i];
    }
  }
  TensorView(T* data_, std::array<int64_t, Rank> shape_, std::array<int64_t, Rank> stride_)
      : data(data_), shape(shape_), stride(stride_) {}

  template <typename... Index>
  KIVI_HD T& operator()(Index... index) const {
    static_assert(sizeof...(Index) == Rank);
    const std::array<int64_t, Rank> at{static_cast<int64_t>(index)...};
    int64_t offset = 0;
    for (int i = 0; i < Rank; ++i) {
      assert(at[i] >= 0 && at[i] < shape[i]);
      offset += at[i] * stride[i];
    }
    return data[offset];
  }

  // The sub-view at index i of the first dimension.
  auto operator[](int64_t i) const {
    if constexpr (Rank == 1) {
      return data[i * stride[0]];
    } else {
      TensorView<T, Rank - 1> sub;
      sub.data = data + i * stride[0];
      for (int d = 1; d < Rank; ++d) {
        sub.shape[d - 1] = shape[d];
        sub.stride[d - 1] = stride[d];
      }
      return sub;
    }
  }

  int64_t size() const {
    int64_t n = 1;
    for (int64_t extent : shape) n *= extent;
    return n;
  }

  template <typename U>
  requires(std::is_same_v<U, const T> && !std::is_const_v<T>) operator TensorView<U, Rank>() const {
    return {data, shape, stride};
  }
};

// A view whose element type is known at run time only: what crosses the backend interface.
struct AnyView {
  static constexpr int kMaxRank = 3;
  void* data = nullptr;
  DType dtype = DType::kF32;
  int rank = 0;
  std::array<int64_t, kMaxRank> shape{};
  std::array<int64_t, kMaxRank> stride{};  // elements

  AnyView() = default;
  template <typename T, int Rank>
  requires(Rank <= kMaxRank) AnyView(TensorView<T, Rank> view)  // NOLINT: views convert freely
      : data(const_cast<std::remove_const_t<T>*>(view.data)), dtype(kDTypeOf<std::remove_const_t<T>>), rank(Rank) {
    for (int i = 0; i < Rank; ++i) {
      shape[i] = view.shape[i];
      stride[i] = view.stride[i];
    }
  }

  // The typed view. Throws Error{kInternal} when the dtype or the rank is another.
  template <typename T, int Rank>
  TensorView<T, Rank> as() const {
    constexpr DType wanted = kDTypeOf<std::remove_const_t<T>>;
    if (dtype != wanted || rank != Rank) {
      fail(ErrorCode::kInternal, "tensor is {} of rank {}, wanted {} of rank {}", name(dtype), rank, name(wanted),
           Rank);
    }
    TensorView<T, Rank> view;
    view.data = static_cast<T*>(data);
    for (int i = 0; i < Rank; ++i) {
      view.shape[i] = shape[i];
      view.stride[i] = stride[i];
    }
    return view;
  }

  bool empty() const { return data == nullptr; }
};

}  // namespace kivi
