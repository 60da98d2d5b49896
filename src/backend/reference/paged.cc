#include "backend/reference/paged.h"

#include <algorithm>
#include <span>

#include "format/quantise.h"

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

float half_at(const std::byte* base, int64_t index) {
  return to_float(reinterpret_cast<const Half*>(base)[index]);
}
uint32_t word_at(const std::byte* base, int64_t index) {
  return reinterpret_cast<const uint32_t*>(base)[index];
}

// One side of a block: keys or values.
struct PackedSide {
  int bits;
  int64_t codes, scales, zeros;  // bytes from the start of the block
  format::CodePlace (PageLayout::*code)(int token, int channel) const;
  int64_t (PageLayout::*param)(int token, int channel) const;
};

PackedSide key_side(const PageLayout& layout) {
  return {layout.key_bits,    layout.key_codes(),    layout.key_scales(),
          layout.key_zeros(), &PageLayout::key_code, &PageLayout::key_param};
}
PackedSide value_side(const PageLayout& layout) {
  return {layout.value_bits,    layout.value_codes(),    layout.value_scales(),
          layout.value_zeros(), &PageLayout::value_code, &PageLayout::value_param};
}

Row packed_row(const PageLayout& layout, const PackedSide& side, const std::byte* block, int token) {
  Row out(layout.head_dim);
  for (int c = 0; c < layout.head_dim; ++c) {
    const format::CodePlace at = (layout.*side.code)(token, c);
    const int64_t param = (layout.*side.param)(token, c);
    const uint32_t word = word_at(block + side.codes, at.word);
    out[c] = format::dequantise(format::code_at(word, at.place, side.bits), half_at(block + side.scales, param),
                                half_at(block + side.zeros, param));
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

// A number of a block, by its token in the page and its channel.
struct Element {
  int token;
  int channel;
};

// Quantises the n numbers at(i), whose elements are element(i), as one group of the block.
template <typename At, typename ElementOf>
void pack_group(const PageLayout& layout, const PackedSide& side, std::byte* block, int n, At at, ElementOf element) {
  format::GroupRange range;
  for (int i = 0; i < n; ++i) range.add(at(i));
  const format::GroupParams params = format::group_params(range, side.bits);
  auto* words = reinterpret_cast<uint32_t*>(block + side.codes);
  for (int i = 0; i < n; ++i) {
    const format::CodePlace place = (layout.*side.code)(element(i).token, element(i).channel);
    uint32_t& word = words[place.word];
    word &= ~(format::max_code(side.bits) << (side.bits * place.place));
    word = format::with_code(word, place.place, side.bits,
                             format::quantise(at(i), to_float(params.scale), to_float(params.zero), side.bits));
  }
  const int64_t param = (layout.*side.param)(element(0).token, element(0).channel);
  reinterpret_cast<Half*>(block + side.scales)[param] = params.scale;
  reinterpret_cast<Half*>(block + side.zeros)[param] = params.zero;
}

void pack_keys(const NewRows& rows) {
  const PageLayout& layout = rows.cache.layout;
  for (int64_t first = rows.first_packed(); first < rows.packed_end(); first += layout.key_group) {
    std::byte* block = rows.cache.packed_block(rows.b, first / format::kPageTokens, rows.head);
    const auto token = static_cast<int>(first % format::kPageTokens);
    for (int c = 0; c < layout.head_dim; ++c) {
      pack_group(
          layout, key_side(layout), block, layout.key_group,
          [&](int i) { return rows.at(rows.policy.sinks + first + i, c); },
          [&](int i) {
            return Element{token + i, c};
          });
    }
  }
}

void pack_values(const NewRows& rows) {
  const PageLayout& layout = rows.cache.layout;
  for (int64_t t = rows.first_packed(); t < rows.packed_end(); ++t) {
    std::byte* block = rows.cache.packed_block(rows.b, t / format::kPageTokens, rows.head);
    const auto token = static_cast<int>(t % format::kPageTokens);
    for (int c = 0; c < layout.head_dim; c += layout.value_group) {
      pack_group(
          layout, value_side(layout), block, layout.value_group,
          [&](int i) { return rows.at(rows.policy.sinks + t, c + i); },
          [&](int i) {
            return Element{token, c + i};
          });
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
