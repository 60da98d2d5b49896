// What goes into attention, layer by layer: queries, keys before and after RoPE, values. A backend in front of another
// sees them pass, so that the decoder knows nothing of it.
#pragma once

#include <functional>
#include <span>

#include "core/tensor_view.h"
#include "eval/forwarding_backend.h"
#include "format/window_policy.h"
#include "model/decoder.h"

namespace kivi {

// Of one layer and the N tokens of a sequence that begins with them. H query heads, K KV heads, D head_dim.
struct LayerCapture {
  int layer = 0;
  TensorView<const float, 3> queries;           // [N, H, D], after RoPE
  TensorView<const float, 3> keys_before_rope;  // [N, K, D]
  TensorView<const float, 3> keys;              // [N, K, D], as the cache gets them: rounded to 16 bits
  TensorView<const float, 3> values;            // [N, K, D], likewise
  float softmax_scale = 0.0F;
  float score_cap = 0.0F;          // AttendArgs
  format::WindowPolicy attention;  // what a token sees: first_seen()

  int64_t n_tokens() const { return keys.shape[0]; }
  int64_t n_kv_heads() const { return keys.shape[1]; }
  int64_t head_dim() const { return keys.shape[2]; }
  int64_t group_heads() const { return queries.shape[1] / keys.shape[1]; }  // query heads of a KV head
};

// The views are valid during the call.
using CaptureCallback = std::function<void(const LayerCapture&)>;

// Runs a text in 16 bits, in one step, and shows every layer in turn. No more than one layer's copies are alive. The
// backend must be one of the host's: throws Error{kUnsupported} if not.
void capture(Backend& backend, const ModelWeights& weights, std::span<const TokenId> tokens,
             const CaptureCallback& callback);

}  // namespace kivi
