#include "backend/reference/paged.h"

#include <algorithm>

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

Row packed_key(const PageLayout& layout, const std::byte* block, int token) {
  Row out(layout.head_dim);
  for (int c = 0; c < layout.head_dim; ++c) {
    const int64_t param = layout.key_param(token, c);
    const uint32_t word = word_at(block + layout.key_codes(), layout.key_word(token, c));
    out[c] =
        format::dequantise(format::code_at(word, layout.key_place(token), layout.key_bits),
                           half_at(block + layout.key_scales(), param), half_at(block + layout.key_zeros(), param));
  }
  return out;
}

Row packed_value(const PageLayout& layout, const std::byte* block, int token) {
  Row out(layout.head_dim);
  for (int c = 0; c < layout.head_dim; ++c) {
    const int64_t param = layout.value_param(token, c);
    const uint32_t word = word_at(block + layout.value_codes(), layout.value_word(token, c));
    out[c] =
        format::dequantise(format::code_at(word, layout.value_place(c), layout.value_bits),
                           half_at(block + layout.value_scales(), param), half_at(block + layout.value_zeros(), param));
  }
  return out;
}

using WindowRow = std::byte* (KvBatchView::*)(int64_t b, int64_t token, int head) const;

std::vector<Row> stored_rows(const KvBatchView& cache, int64_t b, int head, const WindowPolicy& policy,
                             WindowRow window_row, Row (*packed_row)(const PageLayout&, const std::byte*, int)) {
  std::vector<Row> rows;
  const int64_t packed_end = policy.window_begin(cache.n_past(b));
  for (int64_t t = 0; t < cache.n_past(b); ++t) {
    if (t < policy.sinks || t >= packed_end) {
      rows.push_back(load_row((cache.*window_row)(b, t, head), cache.window_dtype, cache.layout.head_dim));
    } else {
      const int64_t u = t - policy.sinks;
      const std::byte* block = cache.packed_block(b, u / format::kPageTokens, head);
      rows.push_back(packed_row(cache.layout, block, static_cast<int>(u % format::kPageTokens)));
    }
  }
  return rows;
}

// What store_kv reads and writes of one sequence and KV head: the keys, or the values.
struct Side {
  const KvBatchView& cache;
  const AnyView& new_rows;
  const WindowPolicy& policy;
  int64_t b;
  int head;
  int64_t first_row;  // of this sequence in new_rows
  int64_t n_new;
  WindowRow window_row;

  int64_t n_past() const { return cache.n_past(b); }
  float at(int64_t token, int channel) const {
    const std::byte* row = token < n_past() ? (cache.*window_row)(b, token, head)
                                            : row_bytes(new_rows, first_row + token - n_past(), head);
    return load_16(row, cache.window_dtype, channel);
  }
  void keep_the_rest() const {
    for (int64_t token = n_past(); token < n_past() + n_new; ++token) {
      if (token >= policy.sinks && token < policy.sinks + policy.n_packed(n_past() + n_new)) continue;
      const std::byte* from = row_bytes(new_rows, first_row + token - n_past(), head);
      std::copy_n(from, cache.layout.head_dim * 2, (cache.*window_row)(b, token, head));
    }
  }
};

// Quantises the n numbers that `at(i)` gives into the words and parameters that `word(i)`, `place(i)` name.
template <typename At, typename Word, typename Place>
void pack_group(int n, int bits, At at, Word word, Place place, Half& scale_out, Half& zero_out) {
  format::GroupRange range;
  for (int i = 0; i < n; ++i) range.add(at(i));
  const format::GroupParams params = format::group_params(range, bits);
  for (int i = 0; i < n; ++i) {
    uint32_t& target = word(i);
    if (place(i) == 0) target = 0;
    target = format::with_code(target, place(i), bits,
                               format::quantise(at(i), to_float(params.scale), to_float(params.zero), bits));
  }
  scale_out = params.scale;
  zero_out = params.zero;
}

void pack_keys(const Side& side) {
  const PageLayout& layout = side.cache.layout;
  const int64_t end = side.policy.n_packed(side.n_past() + side.n_new);
  for (int64_t first = side.policy.n_packed(side.n_past()); first < end; first += layout.key_group) {
    std::byte* block = side.cache.packed_block(side.b, first / format::kPageTokens, side.head);
    const auto token = static_cast<int>(first % format::kPageTokens);
    auto* words = reinterpret_cast<uint32_t*>(block + layout.key_codes());
    for (int c = 0; c < layout.head_dim; ++c) {
      const int64_t param = layout.key_param(token, c);
      pack_group(
          layout.key_group, layout.key_bits, [&](int i) { return side.at(side.policy.sinks + first + i, c); },
          [&](int i) -> uint32_t& { return words[layout.key_word(token + i, c)]; },
          [&](int i) { return layout.key_place(token + i); },
          reinterpret_cast<Half*>(block + layout.key_scales())[param],
          reinterpret_cast<Half*>(block + layout.key_zeros())[param]);
    }
  }
}

void pack_values(const Side& side) {
  const PageLayout& layout = side.cache.layout;
  const int64_t end = side.policy.n_packed(side.n_past() + side.n_new);
  for (int64_t t = side.policy.n_packed(side.n_past()); t < end; ++t) {
    std::byte* block = side.cache.packed_block(side.b, t / format::kPageTokens, side.head);
    const auto token = static_cast<int>(t % format::kPageTokens);
    auto* words = reinterpret_cast<uint32_t*>(block + layout.value_codes());
    for (int c = 0; c < layout.head_dim; c += layout.value_group) {
      const int64_t param = layout.value_param(token, c);
      pack_group(
          layout.value_group, layout.value_bits, [&](int i) { return side.at(side.policy.sinks + t, c + i); },
          [&](int i) -> uint32_t& { return words[layout.value_word(token, c + i)]; },
          [&](int i) { return layout.value_place(c + i); },
          reinterpret_cast<Half*>(block + layout.value_scales())[param],
          reinterpret_cast<Half*>(block + layout.value_zeros())[param]);
    }
  }
}

}  // namespace

std::vector<Row> stored_keys(const KvBatchView& cache, int64_t b, int head) {
  return stored_rows(cache, b, head, cache.key_policy, &KvBatchView::key_row, packed_key);
}

std::vector<Row> stored_values(const KvBatchView& cache, int64_t b, int head) {
  return stored_rows(cache, b, head, cache.value_policy, &KvBatchView::value_row, packed_value);
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
        for (int64_t h = head * heads_per_kv; h < (head + 1) * heads_per_kv; ++h) {
          const float* query = &q(row, h, 0);
          const Row result = attend_dense(Row(query, query + head_dim), keys, values, args.softmax_scale);
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
      const Side keys{cache, args.new_keys, cache.key_policy, b, head, seq_begin(b), n_new, &KvBatchView::key_row};
      pack_keys(keys);
      keys.keep_the_rest();
      const Side values{cache,        args.new_values, cache.value_policy,     b, head,
                        seq_begin(b), n_new,           &KvBatchView::value_row};
      pack_values(values);
      values.keep_the_rest();
    }
  }
}

}  // namespace kivi::reference
