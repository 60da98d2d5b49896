// What backends check about the arguments of a norm, and one form for both of its shapes.
#pragma once

#include "backend/backend.h"
#include "backend/require.h"

namespace kivi {

// The same with x and out as [N, heads, C], weight and bias as [heads, C]; there is one head where x is [N, C].
inline NormArgs with_heads(NormArgs args) {
  const auto insert_heads = [](AnyView& view, int wanted_rank) {
    if (view.empty() || view.rank + 1 != wanted_rank) return;
    const int last = view.rank++;
    view.shape[last] = view.shape[last - 1];
    view.stride[last] = 1;
    view.shape[last - 1] = 1;
    view.stride[last - 1] = view.shape[last];
  };
  insert_heads(args.x, 3);
  insert_heads(args.out, 3);
  insert_heads(args.weight, 2);
  insert_heads(args.bias, 2);

  require_extent("norm: rank of x", args.x.rank, 3);
  require_same_shape("norm: shape of out", args.out, args.x);
  require_extent("norm: heads of weight", args.weight.as<const float, 2>().shape[0], args.x.shape[1]);
  require_extent("norm: channels of weight", args.weight.shape[1], args.x.shape[2]);
  if (!args.bias.empty()) {
    args.bias.as<const float, 2>();
    require_same_shape("norm: shape of bias", args.bias, args.weight);
  }
  return args;
}

}  // namespace kivi
