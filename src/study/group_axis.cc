#include "study/group_axis.h"

#include <algorithm>

#include "format/quantise.h"

namespace kivi {
namespace {

// n numbers, `step` apart.
void quantise_group(float* x, int64_t n, int64_t step, int bits) {
  format::GroupRange range;
  for (int64_t i = 0; i < n; ++i) range.add(x[i * step]);
  const format::GroupParams params = format::group_params(range, bits);
  const float scale = to_float(params.scale);
  const float zero = to_float(params.zero);
  for (int64_t i = 0; i < n; ++i) {
    x[i * step] = format::dequantise(format::quantise(x[i * step], scale, zero, bits), scale, zero);
  }
}

}  // namespace

void quantise_in_place(const TensorView<float, 2>& rows, const Grouping& grouping) {
  const auto [n_tokens, n_channels] = rows.shape;
  const int64_t size = grouping.size;
  const bool per_token = grouping.axis == GroupAxis::kToken;
  for (int64_t t = 0; t < n_tokens; t += per_token ? 1 : size) {
    for (int64_t c = 0; c < n_channels; c += per_token ? size : 1) {
      float* first = rows.data + t * rows.stride[0] + c;
      if (per_token) {
        quantise_group(first, std::min(size, n_channels - c), 1, grouping.bits);
      } else {
        quantise_group(first, std::min(size, n_tokens - t), rows.stride[0], grouping.bits);
      }
    }
  }
}

}  // namespace kivi
