#include "backend/cpu/linear.h"

#include <algorithm>

#include "core/parallel.h"

namespace kivi::cpu {
namespace {

F32Linear tokens_of(const F32Linear& args, int64_t begin, int64_t end) {
  F32Linear part = args;
  part.x.data = args.x[begin].data;
  part.out.data = args.out[begin].data;
  part.x.shape[0] = part.out.shape[0] = end - begin;
  return part;
}

}  // namespace

void linear(std::span<const F32Linear> parts, Isa isa, int n_threads) {
  // Every strip of the weight reads all of x: blocks of tokens keep it, and the sums that rest, in the caches.
  constexpr int64_t kBlockElements = int64_t{1} << 20;
  constexpr int64_t kLeastBlockTokens = 120;  // below, decoding the weight again would show
  const auto [n_tokens, cols] = parts.front().x.shape;
  const int64_t most = std::max(kLeastBlockTokens, kBlockElements / std::max<int64_t>(1, cols));
  const int64_t n_blocks = (n_tokens + most - 1) / most;
  // A chunk of rows is long enough to hide taking it, and whole strips.
  constexpr int64_t kChunkRows = 32;
  constexpr int64_t kChunkProducts = 65536;
  for (int64_t block = 0; block < n_blocks; ++block) {
    const int64_t token = block * n_tokens / n_blocks;
    const int64_t token_end = (block + 1) * n_tokens / n_blocks;
    const int64_t row_products = std::max<int64_t>(1, (token_end - token) * cols);
    const int64_t chunk_rows = kChunkRows * std::max<int64_t>(1, kChunkProducts / row_products / kChunkRows);
    const auto n_chunks = [&](const F32Linear& part) { return (part.weight.rows + chunk_rows - 1) / chunk_rows; };
    int64_t n_all_chunks = 0;
    for (const F32Linear& part : parts) n_all_chunks += n_chunks(part);
    // Chunks of all parts in one go, so that the threads wait for each other once.
    parallel_for(n_threads, n_all_chunks, 1, [&](int64_t begin, int64_t end) {
      int64_t first = 0;  // chunk of the part
      for (const F32Linear& part : parts) {
        const int64_t row = (std::max(begin, first) - first) * chunk_rows;
        const int64_t row_end = std::min(part.weight.rows, (end - first) * chunk_rows);
        if (row < row_end) linear_kernels(isa).rows(tokens_of(part, token, token_end), row, row_end);
        first += n_chunks(part);
      }
    });
  }
}

void embed(const F32Embed& args, Isa isa, int n_threads) {
  const LinearKernels& kernels = linear_kernels(isa);
  constexpr int64_t kChunkTokens = 64;
  parallel_for(n_threads, args.tokens.shape[0], kChunkTokens, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      float* row = args.out.data + n * args.out.stride[0];
      kernels.decode_row(args.table, args.tokens[n], row);
      if (args.scale == 1.0F) continue;
      std::for_each_n(row, args.table.cols, [&](float& value) { value *= args.scale; });
    }
  });
}

}  // namespace kivi::cpu
