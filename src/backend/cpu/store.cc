// Work is split over (sequence, KV head). The quantiser is format/quantise.h itself, run over float copies of a group's
// rows: a flush is 1/R of the steps, and codes must be the same bit for bit everywhere.
#include "backend/cpu/store.h"

#include <algorithm>
#include <span>
#include <vector>

#include "backend/cpu/timeline.h"
#include "core/parallel.h"
#include "format/group_params.h"

namespace kivi::cpu {
namespace {

using format::kPageTokens;

// Where a run of codes goes: whole words, or with 3 bits, the words of their low bits and the bytes of the high ones.
struct CodeRun {
  uint32_t* low;
  uint8_t* high;
};

CodeRun run_of(std::byte* codes, const format::CodePlaces& first) {
  return {reinterpret_cast<uint32_t*>(codes) + first.low.word,
          reinterpret_cast<uint8_t*>(codes) + 4 * first.high.word + first.high.place / 8};
}

// Packs n numbers, `stride` apart.
void pack_codes(const float* x, int64_t stride, int n, const format::GroupLine& line, int bits, const CodeRun& to) {
  const int per_word = format::codes_per_word(bits);
  const int low_bits = format::low_bits(bits);
  uint32_t* low = to.low;
  uint8_t* high = to.high;
  for (int i = 0; i < n; i += per_word) {
    uint32_t word = 0;
    uint32_t high_bits = 0;
    for (int j = 0; j < per_word; ++j) {
      const uint32_t code = format::quantise(x[(i + j) * stride], line.scale, line.zero, bits);
      word = format::with_code(word, j, low_bits, code & format::max_code(low_bits));
      high_bits |= code >> low_bits << j;
    }
    *low++ = word;
    if (!format::has_high_plane(bits)) continue;
    *high++ = static_cast<uint8_t>(high_bits);
    *high++ = static_cast<uint8_t>(high_bits >> 8);
  }
}

struct Scratch {
  std::vector<float> numbers;
  std::vector<format::GroupRange> ranges;  // of channels
};

// Row `token` as floats.
void load_row(const Timeline& rows, int64_t token, int head_dim, float* out) {
  const Half* row = rows.half_row(token);
  for (int c = 0; c < head_dim; ++c) out[c] = to_float(row[c]);
}

// Packs keys first .. first + key_group - 1 (after the sinks): per channel.
void pack_key_group(const Timeline& rows, int64_t first, Scratch& scratch) {
  const format::PageLayout& layout = rows.cache().layout;
  const int head_dim = layout.head_dim;
  scratch.numbers.resize(static_cast<size_t>(layout.key_group * head_dim));
  scratch.ranges.assign(static_cast<size_t>(head_dim), {});
  float* x = scratch.numbers.data();
  for (int i = 0; i < layout.key_group; ++i) {
    float* row = x + i * head_dim;
    load_row(rows, rows.policy().sinks + first + i, head_dim, row);
    for (int c = 0; c < head_dim; ++c) scratch.ranges[c].add(row[c]);
  }
  std::byte* block = rows.packed_block(first / kPageTokens);
  const auto token = static_cast<int>(first % kPageTokens);
  format::store_key_params(layout, block, token, scratch.ranges);
  for (int c = 0; c < head_dim; ++c) {
    pack_codes(x + c, head_dim, layout.key_group, format::key_line(layout, block, token, c), layout.key_bits,
               run_of(block + layout.key_codes(), layout.key_code(token, c)));
  }
}

// Packs value t (after the sinks): per group of channels.
void pack_value_row(const Timeline& rows, int64_t t, Scratch& scratch) {
  const format::PageLayout& layout = rows.cache().layout;
  scratch.numbers.resize(static_cast<size_t>(layout.head_dim));
  const std::span<const float> row = scratch.numbers;
  load_row(rows, rows.policy().sinks + t, layout.head_dim, scratch.numbers.data());
  std::byte* block = rows.packed_block(t / kPageTokens);
  const auto token = static_cast<int>(t % kPageTokens);
  for (int c = 0; c < layout.head_dim; c += layout.value_group) {
    const auto x = row.subspan(static_cast<size_t>(c), static_cast<size_t>(layout.value_group));
    format::store_value_params(layout, block, token, c, x);
    pack_codes(x.data(), 1, layout.value_group, format::value_line(layout, block, token, c), layout.value_bits,
               run_of(block + layout.value_codes(), layout.value_code(token, c)));
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
    Scratch scratch;
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
