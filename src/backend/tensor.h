// A tensor that owns its memory on a backend. Only moves.
#pragma once

#include <array>
#include <initializer_list>
#include <memory>

#include "backend/backend.h"

namespace kivi {

class Tensor {
 public:
  Tensor() = default;
  Tensor(Backend& backend, DType dtype, std::initializer_list<int64_t> shape) {
    view_.dtype = dtype;
    view_.rank = static_cast<int>(shape.size());
    int64_t n = 1;
    int i = 0;
    for (const int64_t extent : shape) {
      view_.shape[i++] = extent;
      n *= extent;
    }
    int64_t step = 1;
    for (int d = view_.rank - 1; d >= 0; --d) {
      view_.stride[d] = step;
      step *= view_.shape[d];
    }
    buffer_ = backend.allocate(static_cast<size_t>(n) * kivi::size_bytes(dtype));
    view_.data = buffer_->data();
  }

  const AnyView& view() const { return view_; }
  template <typename T, int Rank>
  TensorView<T, Rank> as() const {
    return view_.as<T, Rank>();
  }
  // The first n rows of the first dimension.
  AnyView rows(int64_t n) const {
    AnyView view = view_;
    view.shape[0] = n;
    return view;
  }
  size_t size_bytes() const { return buffer_ ? buffer_->size_bytes() : 0; }

 private:
  std::unique_ptr<Buffer> buffer_;
  AnyView view_;
};

}  // namespace kivi
