#include "backend/reference/paged.h"

#include <algorithm>
#include <span>
#include <utility>

#include "format/group_params.h"

namespace kivi::reference {
namespace {

using format::KvBatchView;
using format::PageLayout;
using format::WindowPolicy;

float load_16(const std::byte* row, DType dtype, int channel) {
  const auto bits = reinterpret_cast<const uint16_t*>(row)[channel];
  return dtype == DType::kF16 ? to_float(Half{bits}) : to_float(BFloat16{bits});
}

Row load_row(const std::byte* row, DType dtype, int head_dim) {
  Row out(head_dim);
  for (int c = 0; c < head_dim; ++c) out[c] = load_16(row, dtype, c);
  return out;
}

const std::byte* row_bytes(const AnyView& rows, int64_t row, int head) {
  return static_cast<const std::byte*>(rows.data) + (row * rows.stride[0] + head * rows.stride[1]) * 2;
}

// One side of a block: keys or values.
struct PackedSide {
  int bits;
  int64_t codes;  // bytes from the start of the block
  format::CodePlaces (PageLayout::*code)(int token, int channel) const;
  format::GroupLine (*line)(const PageLayout& layout, const std::byte* block, int token, int channel);
};

PackedSide key_side(const PageLayout& layout) {
  return {layout.key_bits, layout.key_codes(), &PageLayout::key_code, format::key_line};
}
PackedSide value_side(const PageLayout& layout) {
  return {layout.value_bits, layout.value_codes(), &PageLayout::value_code, format::value_line};
}

Row packed_row(const PageLayout& layout, const PackedSide& side, const std::byte* block, int token) {
  Row out(layout.head_dim);
  const auto* words = reinterpret_cast<const uint32_t*>(block + side.codes);
  for (int c = 0; c < layout.head_dim; ++c) {
    const format::GroupLine line = side.line(layout, block, token, c);
    out[c] =
        format::dequantise(format::read_code(words, (layout.*side.code)(token, c), side.bits), line.scale, line.zero);
  }
  return out;
}

using WindowRow = std::byte* (KvBatchView::*)(int64_t b, int64_t token, int head) const;

std::vector<Row> stored_rows(const KvBatchView& cache, int64_t b, int head, const WindowPolicy& policy,
                             WindowRow window_row, const PackedSide& side) {
  std::vector<Row> rows;
  const int64_t packed_end = policy.window_begin(cache.n_past(b));
  for (int64_t t = cache.first_seen(cache.n_past(b)); t < cache.n_past(b); ++t) {
    if (t < policy.sinks || t >= packed_end) {
      rows.push_back(load_row((cache.*window_row)(b, t, head), cache.window_dtype, cache.layout.head_dim));
    } else {
      const int64_t u = t - policy.sinks;
      const std::byte* block = cache.packed_block(b, u / format::kPageTokens, head);
      rows.push_back(packed_row(cache.layout, side, block, static_cast<int>(u % format::kPageTokens)));
    }
  }
  return rows;
}

// What store_kv reads and writes of one sequence and KV head: the keys, or the values.
struct NewRows {
  const KvBatchView& cache;
  const AnyView& new_rows;
  const WindowPolicy& policy;
  int64_t b;
  int head;
  int64_t first_row;  // of this sequence in new_rows
  int64_t n_new;
  WindowRow window_row;

  int64_t n_past() const { return cache.n_past(b); }
  int64_t n_after() const { return n_past() + n_new; }
  // Tokens after the sinks that this step packs: first_packed() .. packed_end() - 1.
  int64_t first_packed() const {
    return std::max(policy.n_packed(n_past()), policy.first_stored(n_after()) - policy.sinks);
  }
  int64_t packed_end() const { return policy.n_packed(n_after()); }
  float at(int64_t token, int channel) const {
    const std::byte* row = token < n_past() ? (cache.*window_row)(b, token, head)
                                            : row_bytes(new_rows, first_row + token - n_past(), head);
    return load_16(row, cache.window_dtype, channel);
  }
  void keep_the_rest() const {
    for (int64_t token = n_past(); token < n_after(); ++token) {
      if (token < policy.first_stored(n_after())) continue;
      if (token >= policy.sinks && token < policy.sinks + packed_end()) continue;
      const std::byte* from = row_bytes(new_rows, first_row + token - n_past(), head);
      std::copy_n(from, cache.layout.head_dim * 2, (cache.*window_row)(b, token, head));
    }
  }
};

// Writes the codes of a group whose params are stored: number i is x[i], of the token and channel that at(i) says.
template <typename At>
void pack_codes(const PageLayout& layout, const PackedSide& side, std::byte* block, std::span<const float> x, At at) {
  auto* words = reinterpret_cast<uint32_t*>(block + side.codes);
  const auto [first_token, first_channel] = at(0);
  const format::GroupLine line = side.line(layout, block, first_token, first_channel);
  for (size_t i = 0; i < x.size(); ++i) {
    const auto [token, channel] = at(static_cast<int>(i));
    format::write_code(words, (layout.*side.code)(token, channel), side.bits,
                       format::quantise(x[i], line.scale, line.zero, side.bits));
  }
}

// Tokens first .. first + key_group - 1 after the sinks.
void pack_key_group(const NewRows& rows, int64_t first) {
  const PageLayout& layout = rows.cache.layout;
  std::byte* block = rows.cache.packed_block(rows.b, first / format::kPageTokens, rows.head);
  const auto token = static_cast<int>(first % format::kPageTokens);
  std::vector<Row> channels(layout.head_dim, Row(layout.key_group));
  std::vector<format::GroupRange> ranges(layout.head_dim);
  for (int c = 0; c < layout.head_dim; ++c) {
    for (int i = 0; i < layout.key_group; ++i) {
      channels[c][i] = rows.at(rows.policy.sinks + first + i, c);
      ranges[c].add(channels[c][i]);
    }
  }
  format::store_key_params(layout, block, token, ranges);
  for (int c = 0; c < layout.head_dim; ++c) {
    pack_codes(layout, key_side(layout), block, channels[c], [&](int i) { return std::pair(token + i, c); });
  }
}

void pack_keys(const NewRows& rows) {
  for (int64_t t = rows.first_packed(); t < rows.packed_end(); t += rows.cache.layout.key_group)
    pack_key_group(rows, t);
}

void pack_values(const NewRows& rows) {
  const PageLayout& layout = rows.cache.layout;
  Row x(layout.value_group);
  for (int64_t t = rows.first_packed(); t < rows.packed_end(); ++t) {
    std::byte* block = rows.cache.packed_block(rows.b, t / format::kPageTokens, rows.head);
    const auto token = static_cast<int>(t % format::kPageTokens);
    for (int c = 0; c < layout.head_dim; c += layout.value_group) {
      for (int i = 0; i < layout.value_group; ++i) x[i] = rows.at(rows.policy.sinks + t, c + i);
      format::store_value_params(layout, block, token, c, x);
      pack_codes(layout, value_side(layout), block, x, [&](int i) { return std::pair(token, c + i); });
    }
  }
}

}  // namespace

std::vector<Row> stored_keys(const KvBatchView& cache, int64_t b, int head) {
  return stored_rows(cache, b, head, cache.key_policy, &KvBatchView::key_row, key_side(cache.layout));
}

std::vector<Row> stored_values(const KvBatchView& cache, int64_t b, int head) {
  return stored_rows(cache, b, head, cache.value_policy, &KvBatchView::value_row, value_side(cache.layout));
}

void attend(const AttendArgs& args) {
  const KvBatchView& cache = args.cache;
  const auto q = args.q.as<const float, 3>();
  const auto out = args.out.as<float, 3>();
  const auto seq_begin = args.seq_begin.as<const int32_t, 1>();
  const int head_dim = cache.layout.head_dim;
  const int64_t heads_per_kv = q.shape[1] / cache.layout.n_kv_heads;
  for (int64_t b = 0; b + 1 < seq_begin.shape[0]; ++b) {
    for (int head = 0; head < cache.layout.n_kv_heads; ++head) {
      std::vector<Row> keys = stored_keys(cache, b, head);
      std::vector<Row> values = stored_values(cache, b, head);
      for (int64_t row = seq_begin(b); row < seq_begin(b + 1); ++row) {
        keys.push_back(load_row(row_bytes(args.new_keys, row, head), cache.window_dtype, head_dim));
        values.push_back(load_row(row_bytes(args.new_values, row, head), cache.window_dtype, head_dim));
        // Of all that is here the first row is the first that the first new token sees.
        const int64_t position = cache.n_past(b) + row - seq_begin(b);
        const int64_t n_unseen = cache.first_seen(position) - cache.first_seen(cache.n_past(b));
        for (int64_t h = head * heads_per_kv; h < (head + 1) * heads_per_kv; ++h) {
          const float* query = &q(row, h, 0);
          const Row result = attend_dense(Row(query, query + head_dim), std::span(keys).subspan(n_unseen),
                                          std::span(values).subspan(n_unseen), args.softmax_scale, args.score_cap);
          std::copy(result.begin(), result.end(), &out(row, h, 0));
        }
      }
    }
  }
}

void store_kv(const StoreKvArgs& args) {
  const KvBatchView& cache = args.cache;
  const auto seq_begin = args.seq_begin.as<const int32_t, 1>();
  for (int64_t b = 0; b + 1 < seq_begin.shape[0]; ++b) {
    const int64_t n_new = seq_begin(b + 1) - seq_begin(b);
    for (int head = 0; head < cache.layout.n_kv_heads; ++head) {
      // Old tokens are read before new ones are written: both may use the same slot of the window.
      const NewRows keys{cache, args.new_keys, cache.key_policy, b, head, seq_begin(b), n_new, &KvBatchView::key_row};
      pack_keys(keys);
      keys.keep_the_rest();
      const NewRows values{cache,        args.new_values, cache.value_policy,     b, head,
                           seq_begin(b), n_new,           &KvBatchView::value_row};
      pack_values(values);
      values.keep_the_rest();
    }
  }
}

}  // namespace kivi::reference
