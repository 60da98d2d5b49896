// One layer of the cache of a batch of sequences, as kernels see it: pages, block tables and lengths, no containers.
// All pointers are in the memory of the backend. Whoever owns the pages (kivi's KvCache, or a host engine) fills this
// in. Kernels of a GPU take it by value.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/host_device.h"
#include "core/tensor_view.h"
#include "format/page_layout.h"
#include "format/window_policy.h"

namespace kivi::format {

// Layers that slide, and layers that do not.
inline constexpr int kMostLayerGroups = 2;

struct KvBatchView {
  PageLayout layout;
  WindowPolicy key_policy;    // keeps_all() where layout has no key bits
  WindowPolicy value_policy;  // likewise; the same sinks and sliding window as key_policy
  int32_t group = 0;          // layers of one group have everything here in common but where their pages begin

  std::byte* packed_pages =
      nullptr;  // page p of this layer is at packed_pages + p * packed_stride; layout.page_bytes()
  int64_t packed_stride = 0;
  std::byte* window_pages = nullptr;  // 16-bit page p of this layer is at window_pages + p * window_stride
  int64_t window_stride = 0;
  DType window_dtype = DType::kF16;

  TensorView<const int32_t, 2> packed_table;        // [B, pages]: page of tokens 128 i .. 128 i + 127 after the sinks
  TensorView<const int32_t, 2> key_window_table;    // [B, slots]: see WindowPolicy::slot
  TensorView<const int32_t, 2> value_window_table;  // [B, slots]
  TensorView<const int32_t, 1> n_past;              // [B]: tokens stored before this step

  // Tokens that a layer which slides sees, the attending one among them; 0: all.
  KIVI_HD int32_t sliding_window() const { return key_policy.sliding_window; }
  // The first token that the token at `position` attends to.
  KIVI_HD int64_t first_seen(int64_t position) const { return key_policy.first_seen(position); }

  // 16-bit page bytes: kWindowPageTokens tokens of all KV heads, keys or values.
  KIVI_HD int64_t window_page_bytes() const {
    return int64_t{kWindowPageTokens} * layout.n_kv_heads * layout.head_dim *
           static_cast<int64_t>(size_bytes(window_dtype));
  }
  KIVI_HD std::byte* packed_block(int64_t b, int64_t page, int head) const {
    return packed_pages + packed_table(b, page) * packed_stride + head * layout.block_bytes();
  }
  // The head_dim elements of one token in the window.
  KIVI_HD std::byte* key_row(int64_t b, int64_t token, int head) const {
    return row(key_policy, key_window_table, b, token, head);
  }
  KIVI_HD std::byte* value_row(int64_t b, int64_t token, int head) const {
    return row(value_policy, value_window_table, b, token, head);
  }

 private:
  KIVI_HD std::byte* row(const WindowPolicy& policy, const TensorView<const int32_t, 2>& table, int64_t b,
                         int64_t token, int head) const {
    const int32_t slot = policy.slot(token, static_cast<int32_t>(table.shape[1]));
    const int64_t element = (int64_t{head} * kWindowPageTokens + policy.place(token)) * layout.head_dim;
    return window_pages + table(b, slot) * window_stride + element * static_cast<int64_t>(size_bytes(window_dtype));
  }
};

}  // namespace kivi::format
