// The cache of one sequence and one KV head in plain memory, as a host engine would lay it out: what KvBatchView needs
// and no more, so that the format and backends whose memory is the host's are tested without KvCache.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <vector>

#include "backend/backend.h"
#include "core/half.h"
#include "format/kv_view.h"
#include "reference/algorithm1.h"

namespace kivi::golden {

class HostCache {
 public:
  HostCache(Backend& backend, const format::PageLayout& layout, const format::WindowPolicy& key_policy,
            const format::WindowPolicy& value_policy, DType dtype, int max_tokens)
      : backend_(backend) {
    view_.layout = layout;
    view_.key_policy = key_policy;
    view_.value_policy = value_policy;
    view_.window_dtype = dtype;
    view_.packed_stride = layout.page_bytes();
    view_.window_stride = view_.window_page_bytes();

    const int n_pages = (max_tokens + format::kPageTokens - 1) / format::kPageTokens;
    const int n_key_slots = key_policy.n_slots(max_tokens);
    const int n_value_slots = value_policy.n_slots(max_tokens);
    packed_.resize(static_cast<size_t>(n_pages * view_.packed_stride));
    window_.resize(static_cast<size_t>((n_key_slots + n_value_slots) * view_.window_stride));
    // Pages lie in memory in the reverse of their order in the tables, so that the tables matter.
    view_.packed_table = fill_table(packed_table_, n_pages, 0);
    view_.key_window_table = fill_table(key_table_, n_key_slots, 0);
    view_.value_window_table = fill_table(value_table_, n_value_slots, n_key_slots);
    view_.packed_pages = packed_.data();
    view_.window_pages = window_.data();
    view_.n_past = TensorView<const int32_t, 1>(&n_past_, {1});
  }
  HostCache(const HostCache&) = delete;  // the view points into it
  HostCache& operator=(const HostCache&) = delete;

  // What the queries of a step see: the stored tokens and, causally, the new ones.
  std::vector<reference::Row> attend(const std::vector<reference::Row>& queries,
                                     const std::vector<reference::Row>& keys, const std::vector<reference::Row>& values,
                                     float softmax_scale) {
    const auto n = static_cast<int64_t>(keys.size());
    const int64_t head_dim = view_.layout.head_dim;
    std::vector<float> q;
    for (const reference::Row& row : queries) q.insert(q.end(), row.begin(), row.end());
    std::vector<float> out(q.size());
    const std::vector<uint16_t> key_bits = to_16_bits(keys);
    const std::vector<uint16_t> value_bits = to_16_bits(values);
    const std::array<int32_t, 2> seq_begin{0, static_cast<int32_t>(n)};
    backend_.attend({.q = TensorView<const float, 3>(q.data(), {n, 1, head_dim}),
                     .new_keys = rows_view(key_bits, n),
                     .new_values = rows_view(value_bits, n),
                     .seq_begin = TensorView<const int32_t, 1>(seq_begin.data(), {2}),
                     .cache = view_,
                     .softmax_scale = softmax_scale,
                     .out = TensorView<float, 3>(out.data(), {n, 1, head_dim})});
    std::vector<reference::Row> rows;
    for (int64_t i = 0; i < n; ++i) rows.emplace_back(out.begin() + i * head_dim, out.begin() + (i + 1) * head_dim);
    return rows;
  }

  void store(const std::vector<reference::Row>& keys, const std::vector<reference::Row>& values) {
    const auto n = static_cast<int64_t>(keys.size());
    const std::vector<uint16_t> key_bits = to_16_bits(keys);
    const std::vector<uint16_t> value_bits = to_16_bits(values);
    const std::array<int32_t, 2> seq_begin{0, static_cast<int32_t>(n)};
    backend_.store_kv({.new_keys = rows_view(key_bits, n),
                       .new_values = rows_view(value_bits, n),
                       .seq_begin = TensorView<const int32_t, 1>(seq_begin.data(), {2}),
                       .cache = view_});
    n_past_ += static_cast<int32_t>(n);
  }

  const format::KvBatchView& view() const { return view_; }

  // The blocks of the pages that hold packed tokens, in the order of the tokens.
  std::vector<std::byte> packed_bytes() const {
    const int64_t n_tokens = std::max(view_.key_policy.n_packed(n_past_), view_.value_policy.n_packed(n_past_));
    std::vector<std::byte> bytes;
    for (int64_t page = 0; page * format::kPageTokens < n_tokens; ++page) {
      const std::byte* block = view_.packed_block(0, page, 0);
      bytes.insert(bytes.end(), block, block + view_.layout.block_bytes());
    }
    return bytes;
  }

 private:
  static TensorView<const int32_t, 2> fill_table(std::vector<int32_t>& table, int n, int first) {
    table.resize(n);
    std::iota(table.rbegin(), table.rend(), first);
    return {table.data(), {1, n}};
  }

  std::vector<uint16_t> to_16_bits(const std::vector<reference::Row>& rows) const {
    std::vector<uint16_t> bits;
    for (const reference::Row& row : rows) {
      for (const float x : row) {
        bits.push_back(view_.window_dtype == DType::kF16 ? to_half(x).bits : to_bfloat16(x).bits);
      }
    }
    return bits;
  }

  AnyView rows_view(const std::vector<uint16_t>& bits, int64_t n) const {
    const std::array<int64_t, 3> shape{n, 1, view_.layout.head_dim};
    if (view_.window_dtype == DType::kF16) {
      return TensorView<const Half, 3>(reinterpret_cast<const Half*>(bits.data()), shape);
    }
    return TensorView<const BFloat16, 3>(reinterpret_cast<const BFloat16*>(bits.data()), shape);
  }

  Backend& backend_;
  format::KvBatchView view_;
  std::vector<std::byte> packed_;
  std::vector<std::byte> window_;
  std::vector<int32_t> packed_table_;
  std::vector<int32_t> key_table_;
  std::vector<int32_t> value_table_;
  int32_t n_past_ = 0;
};

}  // namespace kivi::golden
