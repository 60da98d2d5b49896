#include "backend/cpu/attend.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "backend/cpu/scratch.h"
#include "backend/cpu/timeline.h"
#include "core/parallel.h"

namespace kivi::cpu {
namespace {

constexpr int64_t kSplitTokens = 4 * kTile;  // of a stretch in decoding
constexpr int64_t kQueryRows = 128;          // (query token, head) pairs of a prefill item, about

// The arguments, typed and checked, with the sizes that everything below needs.
struct Problem {
  explicit Problem(const AttendArgs& args)
      : cache(args.cache),
        q(args.q.as<const float, 3>()),
        new_keys(args.new_keys.as<const Half, 3>()),
        new_values(args.new_values.as<const Half, 3>()),
        seq_begin(args.seq_begin.as<const int32_t, 1>()),
        out(args.out.as<float, 3>()),
        softmax_scale(args.softmax_scale),
        score_cap(args.score_cap),
        head_dim(args.cache.layout.head_dim),
        n_kv_heads(args.cache.layout.n_kv_heads),
        heads_per_kv(static_cast<int>(q.shape[1] / n_kv_heads)) {
    if (head_dim % 16 != 0)
      fail(ErrorCode::kUnsupported, "head_dim {}: the CPU's attention needs a multiple of 16", head_dim);
    if (q.shape[2] != head_dim || q.shape[1] % n_kv_heads != 0 || new_keys.shape[1] != n_kv_heads ||
        new_keys.shape[2] != head_dim || out.shape != q.shape || new_values.shape != new_keys.shape) {
      fail(ErrorCode::kInternal, "attend: the shapes of q, new keys and values, and the cache contradict each other");
    }
  }

  int64_t n_sequences() const { return seq_begin.shape[0] - 1; }
  int64_t n_new(int64_t b) const { return seq_begin(b + 1) - seq_begin(b); }
  Timeline keys(int64_t b, int head) const { return {Side::kKeys, cache, b, head, new_keys, seq_begin(b)}; }
  Timeline values(int64_t b, int head) const { return {Side::kValues, cache, b, head, new_values, seq_begin(b)}; }

  const format::KvBatchView& cache;
  TensorView<const float, 3> q;
  TensorView<const Half, 3> new_keys;
  TensorView<const Half, 3> new_values;
  TensorView<const int32_t, 1> seq_begin;
  TensorView<float, 3> out;
  float softmax_scale;
  float score_cap;
  int head_dim;
  int n_kv_heads;
  int heads_per_kv;
};

// Calls visit(begin, end) for the tiles of tokens begin .. end - 1: the sinks, then pages counted from the end of the
// sinks.
template <typename Visit>
void for_each_tile(int64_t sinks, int64_t begin, int64_t end, Visit visit) {
  for (int64_t t = begin; t < end;) {
    const int64_t tile_end =
        t < sinks ? std::min<int64_t>(t + kTile, sinks) : sinks + ((t - sinks) / kTile + 1) * kTile;
    visit(t, std::min(tile_end, end));
    t = std::min(tile_end, end);
  }
}

// Online softmax of some rows: per row the weighted sum of values so far, a maximum, and a total.
struct SoftmaxRows {
  SoftmaxRows(float* memory, int64_t n_rows, int head_dim)
      : n(n_rows), out(memory), maximum(memory + n * head_dim), total(maximum + n) {}
  static int64_t size(int64_t n, int head_dim) { return n * (head_dim + 2); }
  void clear() const {
    std::fill(out, maximum, 0.0F);
    std::fill_n(maximum, n, -std::numeric_limits<float>::infinity());
    std::fill_n(total, n, 0.0F);
  }
  int64_t n;
  float* out;
  float* maximum;
  float* total;
};

// Of n_tile scores, hides those that a query does not see: all but unseen .. seen - 1, and caps the others. Returns how
// many there are for the softmax.
int hide_and_cap(const AttendKernels& kernels, float cap, float* scores, int64_t unseen, int64_t seen) {
  if (unseen >= seen) return 0;
  if (cap > 0.0F) kernels.cap_scores(scores, static_cast<int>(seen), cap);
  if (unseen > 0) std::fill_n(scores, unseen, -std::numeric_limits<float>::infinity());
  return static_cast<int>(seen);
}

// Stretches are counted from the end of the sinks, which belong to the first.
int64_t stretch_of(const Problem& problem, int64_t token) {
  return std::max<int64_t>(0, token - problem.cache.key_policy.sinks) / kSplitTokens;
}
// The first and the last one that a new token sees.
std::pair<int64_t, int64_t> stretches_of(const Problem& problem, int64_t b) {
  const int64_t n_past = problem.cache.n_past(b);
  return {stretch_of(problem, problem.cache.first_seen(n_past)), stretch_of(problem, n_past)};
}

// The stretch `split` of one sequence and KV head, into `partial` (SoftmaxRows of heads_per_kv rows).
void decode_stretch(const AttendKernels& kernels, const Problem& problem, int64_t b, int head, int64_t split,
                    float* partial) {
  const int head_dim = problem.head_dim;
  const int n_heads = problem.heads_per_kv;
  const int64_t sinks = problem.cache.key_policy.sinks;
  const int64_t n_tokens = problem.cache.n_past(b) + 1;
  const int64_t begin = std::max(split == 0 ? 0 : sinks + split * kSplitTokens, problem.cache.first_seen(n_tokens - 1));
  const int64_t end = std::min(n_tokens, sinks + (split + 1) * kSplitTokens);

  // Every part is aligned to 64 bytes: a vector that straddles two lines costs twice.
  const int64_t partial_size = SoftmaxRows::size(n_heads, head_dim);
  float* q = thread_scratch(n_heads * (head_dim + kTile) + kMaxHeadBlock * std::max(head_dim, kTile) + partial_size);
  float* scores = q + n_heads * head_dim;
  float* scratch = scores + n_heads * kTile;
  const SoftmaxRows rows(scratch + kMaxHeadBlock * std::max(head_dim, kTile), n_heads, head_dim);
  rows.clear();
  const float* query = &problem.q(problem.seq_begin(b), head * n_heads, 0);
  for (int i = 0; i < n_heads * head_dim; ++i) q[i] = query[i] * problem.softmax_scale;
  const QueryRows queries{q, n_heads};

  const Timeline keys = problem.keys(b, head);
  const Timeline values = problem.values(b, head);
  for_each_tile(sinks, begin, end, [&](int64_t from, int64_t to) {
    const int64_t first_key = keys.group_begin(from);
    const int64_t unseen = from - first_key;
    keys.for_each_run(
        first_key, to,
        [&](const PackedRows& run, int at) { kernels.packed_scores(run, queries, scratch, scores + at); },
        [&](const HalfRows& run, int at) { kernels.half_scores(run, queries, scores + at); });
    for (int h = 0; h < n_heads; ++h) {
      const int n = hide_and_cap(kernels, problem.score_cap, scores + h * kTile, unseen, to - first_key);
      kernels.softmax_step(scores + h * kTile, n, n, head_dim, rows.maximum + h, rows.total + h,
                           rows.out + h * head_dim);
    }
    const float* seen = scores + unseen;
    values.for_each_run(
        from, to,
        [&](const PackedRows& run, int at) { kernels.packed_values(run, seen + at, n_heads, scratch, rows.out); },
        [&](const HalfRows& run, int at) { kernels.half_values(run, seen + at, n_heads, rows.out); });
  });
  std::copy_n(rows.out, partial_size, partial);
}

// Merges the stretches of one sequence and KV head, in order, into the output.
void merge_stretches(const Problem& problem, int64_t b, int head, float* partials, int64_t n) {
  const int head_dim = problem.head_dim;
  const int n_heads = problem.heads_per_kv;
  const int64_t size = SoftmaxRows::size(n_heads, head_dim);
  for (int h = 0; h < n_heads; ++h) {
    float maximum = -std::numeric_limits<float>::infinity();
    const auto stretch = [&](int64_t i) { return SoftmaxRows(partials + i * size, n_heads, head_dim); };
    for (int64_t i = 0; i < n; ++i) maximum = std::max(maximum, stretch(i).maximum[h]);
    float total = 0.0F;
    float* out = &problem.out(problem.seq_begin(b), head * n_heads + h, 0);
    std::fill_n(out, head_dim, 0.0F);
    for (int64_t i = 0; i < n; ++i) {
      const SoftmaxRows rows = stretch(i);
      const float factor = std::exp(rows.maximum[h] - maximum);
      total += factor * rows.total[h];
      for (int c = 0; c < head_dim; ++c) out[c] += factor * rows.out[h * head_dim + c];
    }
    for (int c = 0; c < head_dim; ++c) out[c] /= total;
  }
}

// The new tokens first .. first + n - 1 of one sequence, with all query heads of one KV head.
void prefill_block(const AttendKernels& kernels, const TileKernels& tiles, const Problem& problem, int64_t b, int head,
                   int64_t first, int64_t n) {
  const int head_dim = problem.head_dim;
  const int n_heads = problem.heads_per_kv;
  const int64_t n_rows = n * n_heads;  // row = query token * n_heads + head
  const int64_t n_past = problem.cache.n_past(b);

  float* q =
      thread_scratch(n_rows * (head_dim + kTile) + 2 * int64_t{kTile} * head_dim + SoftmaxRows::size(n_rows, head_dim));
  float* scores = q + n_rows * head_dim;
  float* key_tile = scores + n_rows * kTile;
  float* value_tile = key_tile + int64_t{kTile} * head_dim;
  const SoftmaxRows rows(value_tile + int64_t{kTile} * head_dim, n_rows, head_dim);
  rows.clear();
  for (int64_t i = 0; i < n; ++i) {
    const float* query = &problem.q(problem.seq_begin(b) + first + i, head * n_heads, 0);
    for (int64_t c = 0; c < int64_t{n_heads} * head_dim; ++c)
      q[i * n_heads * head_dim + c] = query[c] * problem.softmax_scale;
  }

  const Timeline keys = problem.keys(b, head);
  const Timeline values = problem.values(b, head);
  const int64_t begin = problem.cache.first_seen(n_past + first);
  for_each_tile(problem.cache.key_policy.sinks, begin, n_past + first + n, [&](int64_t from, int64_t to) {
    const int64_t first_key = keys.group_begin(from);
    const int64_t skipped = from - first_key;  // keys of tokens that no row sees
    keys.for_each_run(
        first_key, to, [&](const PackedRows& run, int at) { tiles.packed_key_tile(run, key_tile + at); },
        [&](const HalfRows& run, int at) { tiles.half_key_tile(run, key_tile + at); });
    values.for_each_run(
        from, to,
        [&](const PackedRows& run, int at) { tiles.packed_value_tile(run, value_tile + int64_t{at} * head_dim); },
        [&](const HalfRows& run, int at) { tiles.half_value_tile(run, value_tile + int64_t{at} * head_dim); });
    const int64_t n_tile = to - first_key;
    const int64_t n_padded = (n_tile + 15) / 16 * 16;
    tiles.matmul({n_rows, n_padded, head_dim, q, head_dim, key_tile, kTile, scores, kTile, false});
    for (int64_t row = 0; row < n_rows; ++row) {
      const int64_t position = n_past + first + row / n_heads;  // of this query: the newest token that it sees
      const int64_t unseen = problem.cache.first_seen(position) - first_key;
      const int64_t seen = std::min(position + 1 - first_key, n_tile);
      const int n_scores = hide_and_cap(kernels, problem.score_cap, scores + row * kTile, unseen, seen);
      kernels.softmax_step(scores + row * kTile, n_scores, static_cast<int>(n_padded), head_dim, rows.maximum + row,
                           rows.total + row, rows.out + row * head_dim);
    }
    tiles.matmul(
        {n_rows, head_dim, to - from, scores + skipped, kTile, value_tile, head_dim, rows.out, head_dim, true});
  });
  for (int64_t i = 0; i < n; ++i) {
    float* out = &problem.out(problem.seq_begin(b) + first + i, head * n_heads, 0);
    for (int h = 0; h < n_heads; ++h) {
      const int64_t row = i * n_heads + h;
      for (int c = 0; c < head_dim; ++c) out[h * head_dim + c] = rows.out[row * head_dim + c] / rows.total[row];
    }
  }
}

struct Item {
  int64_t b;
  int head;
  int64_t first;  // decoding: the stretch; prefill: the first new token
  int64_t n;      // decoding: 0; prefill: new tokens
  int64_t cost;   // (query row, token) pairs
  int64_t partial = 0;
};

std::vector<Item> make_items(const Problem& problem) {
  std::vector<Item> items;
  int64_t n_partials = 0;
  const int64_t block = std::max<int64_t>(1, kQueryRows / problem.heads_per_kv);
  for (int64_t b = 0; b < problem.n_sequences(); ++b) {
    const int64_t n_past = problem.cache.n_past(b);
    for (int head = 0; head < problem.n_kv_heads; ++head) {
      if (problem.n_new(b) == 1) {
        const auto [first, last] = stretches_of(problem, b);
        for (int64_t split = first; split <= last; ++split) {
          items.push_back({b, head, split, 0, std::min(kSplitTokens, n_past + 1), n_partials++});
        }
      } else {
        for (int64_t first = 0; first < problem.n_new(b); first += block) {
          const int64_t n = std::min(block, problem.n_new(b) - first);
          items.push_back({b, head, first, n, n * (n_past + first + n - problem.cache.first_seen(n_past + first))});
        }
      }
    }
  }
  return items;
}

}  // namespace

void Attention::run(const AttendArgs& args) {
  const Problem problem(args);
  const std::vector<Item> items = make_items(problem);
  const int64_t partial_size = SoftmaxRows::size(problem.heads_per_kv, problem.head_dim);
  const auto n_partials = std::count_if(items.begin(), items.end(), [](const Item& item) { return item.n == 0; });
  partial_.resize(static_cast<size_t>(n_partials * partial_size));

  // The most work first, so that threads finish together.
  std::vector<const Item*> order;
  for (const Item& item : items) order.push_back(&item);
  std::stable_sort(order.begin(), order.end(), [](const Item* x, const Item* y) { return x->cost > y->cost; });
  // Neighbours go to one thread, for each stretch asks for the beginning of the next.
  const auto n_items = static_cast<int64_t>(order.size());
  parallel_for(n_threads_, n_items, std::max<int64_t>(1, n_items / (8 * n_threads_)), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const Item& item = *order[i];
      if (item.n == 0) {
        decode_stretch(kernels_, problem, item.b, item.head, item.first, partial_.data() + item.partial * partial_size);
      } else {
        prefill_block(kernels_, tiles_, problem, item.b, item.head, item.first, item.n);
      }
    }
  });
  for (const Item& item : items) {
    if (item.n != 0) continue;
    const auto [first, last] = stretches_of(problem, item.b);
    if (item.first != first) continue;
    merge_stretches(problem, item.b, item.head, partial_.data() + item.partial * partial_size, last - first + 1);
  }
}

}  // namespace kivi::cpu
