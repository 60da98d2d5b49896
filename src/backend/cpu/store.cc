// Work is split over (sequence, KV head). The quantiser is format/quantise.h itself, run over float copies of a group's
// rows: a flush is 1/R of the steps, and codes must be the same bit for bit everywhere.
#include "backend/cpu/store.h"

#include <algorithm>
#include <array>
#include <vector>

#include "backend/cpu/timeline.h"
#include "core/parallel.h"
#include "format/quantise.h"

namespace kivi::cpu {
namespace {

using format::kPageTokens;

struct Params {
  float scale;
  float zero;
};

// The parameters of a group with this range, stored at `index` of the two arrays.
Params store_params(const format::GroupRange& range, int bits, std::byte* scales, std::byte* zeros, int64_t index) {
  const format::GroupParams params = format::group_params(range, bits);
  reinterpret_cast<Half*>(scales)[index] = params.scale;
  reinterpret_cast<Half*>(zeros)[index] = params.zero;
  return {to_float(params.scale), to_float(params.zero)};
}

// Packs n numbers, `stride` apart, into whole words.
void pack_codes(const float* x, int64_t stride, int n, const Params& params, int bits, uint32_t* words) {
  const int per_word = format::codes_per_word(bits);
  for (int i = 0; i < n; i += per_word) {
    uint32_t word = 0;
    for (int j = 0; j < per_word; ++j) {
      word = format::with_code(word, j, bits, format::quantise(x[(i + j) * stride], params.scale, params.zero, bits));
    }
    *words++ = word;
  }
}

// Row `token` as floats.
void load_row(const Timeline& rows, int64_t token, int head_dim, float* out) {
  const Half* row = rows.half_row(token);
  for (int c = 0; c < head_dim; ++c) out[c] = to_float(row[c]);
}

// Packs keys first .. first + key_group - 1 (after the sinks): per channel.
void pack_key_group(const Timeline& rows, int64_t first, std::vector<float>& scratch) {
  const format::PageLayout& layout = rows.cache().layout;
  const int head_dim = layout.head_dim;
  scratch.resize(static_cast<size_t>((layout.key_group + 2) * head_dim));
  float* low = scratch.data();
  float* high = low + head_dim;
  float* x = high + head_dim;
  std::fill_n(low, head_dim, format::GroupRange{}.min);
  std::fill_n(high, head_dim, format::GroupRange{}.max);
  for (int i = 0; i < layout.key_group; ++i) {
    float* row = x + i * head_dim;
    load_row(rows, rows.policy().sinks + first + i, head_dim, row);
    for (int c = 0; c < head_dim; ++c) {
      low[c] = std::min(low[c], row[c]);
      high[c] = std::max(high[c], row[c]);
    }
  }
  std::byte* block = rows.packed_block(first / kPageTokens);
  const auto token = static_cast<int>(first % kPageTokens);
  auto* words = reinterpret_cast<uint32_t*>(block + layout.key_codes());
  for (int c = 0; c < head_dim; ++c) {
    const Params params = store_params({low[c], high[c]}, layout.key_bits, block + layout.key_scales(),
                                       block + layout.key_zeros(), layout.key_param(token, c));
    pack_codes(x + c, head_dim, layout.key_group, params, layout.key_bits, words + layout.key_code(token, c).word);
  }
}

// Packs value t (after the sinks): per group of channels.
void pack_value_row(const Timeline& rows, int64_t t, std::vector<float>& scratch) {
  const format::PageLayout& layout = rows.cache().layout;
  scratch.resize(static_cast<size_t>(layout.head_dim));
  load_row(rows, rows.policy().sinks + t, layout.head_dim, scratch.data());
  std::byte* block = rows.packed_block(t / kPageTokens);
  const auto token = static_cast<int>(t % kPageTokens);
  auto* words = reinterpret_cast<uint32_t*>(block + layout.value_codes());
  for (int c = 0; c < layout.head_dim; c += layout.value_group) {
    const float* x = scratch.data() + c;
    format::GroupRange range;
    for (int i = 0; i < layout.value_group; ++i) range.add(x[i]);
    const Params params = store_params(range, layout.value_bits, block + layout.value_scales(),
                                       block + layout.value_zeros(), layout.value_param(token, c));
    pack_codes(x, 1, layout.value_group, params, layout.value_bits, words + layout.value_code(token, c).word);
  }
}

// Writes the new tokens that stay in 16 bits into the window. After packing: a slot may hold tokens that were just
// packed.
void keep_rows(const Timeline& rows, int64_t n_after) {
  const format::WindowPolicy& policy = rows.policy();
  const int64_t packed_end = policy.sinks + policy.n_packed(n_after);
  for (int64_t token = std::max(rows.n_past(), policy.first_stored(n_after)); token < n_after; ++token) {
    if (token >= policy.sinks && token < packed_end) continue;
    std::copy_n(reinterpret_cast<const std::byte*>(rows.half_row(token)), rows.cache().layout.head_dim * sizeof(Half),
                rows.window_row(token));
  }
}

// Calls pack(t) for every `step`-th token after the sinks that a step packs.
template <typename Pack>
void for_each_packed(const Timeline& rows, int64_t n_after, int step, Pack pack) {
  const format::WindowPolicy& policy = rows.policy();
  const int64_t end = policy.n_packed(n_after);
  int64_t t = std::max(policy.n_packed(rows.n_past()), policy.first_stored(n_after) - policy.sinks);
  for (; t < end; t += step) pack(t);
}

}  // namespace

void store_kv(const StoreKvArgs& args, int n_threads) {
  const format::KvBatchView& cache = args.cache;
  const auto new_keys = args.new_keys.as<const Half, 3>();
  const auto new_values = args.new_values.as<const Half, 3>();
  const auto seq_begin = args.seq_begin.as<const int32_t, 1>();
  const int n_kv_heads = cache.layout.n_kv_heads;
  const int64_t n_items = (seq_begin.shape[0] - 1) * n_kv_heads;
  const int64_t n_rows = seq_begin(seq_begin.shape[0] - 1);
  // A step of a few tokens is less work than waking the threads.
  const int team = n_rows * n_kv_heads < 64 ? 1 : n_threads;
  parallel_for(team, n_items, 1, [&](int64_t begin, int64_t end) {
    std::vector<float> scratch;
    for (int64_t item = begin; item < end; ++item) {
      const int64_t b = item / n_kv_heads;
      const auto head = static_cast<int>(item % n_kv_heads);
      if (seq_begin(b) == seq_begin(b + 1)) continue;
      const int64_t n_after = cache.n_past(b) + seq_begin(b + 1) - seq_begin(b);

      const Timeline keys(Side::kKeys, cache, b, head, new_keys, seq_begin(b));
      for_each_packed(keys, n_after, cache.layout.key_group, [&](int64_t t) { pack_key_group(keys, t, scratch); });
      keep_rows(keys, n_after);

      const Timeline values(Side::kValues, cache, b, head, new_values, seq_begin(b));
      for_each_packed(values, n_after, 1, [&](int64_t t) { pack_value_row(values, t, scratch); });
      keep_rows(values, n_after);
    }
  });
}

}  // namespace kivi::cpu
