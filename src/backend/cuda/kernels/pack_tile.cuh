// Packing rows of keys or values into pages: the rows that one block of store.cu packs together.
//   shared memory   pointers to the rows (1 KiB), codes as bytes [row][head_dim + 4] (17 KiB for head_dim 128)
//                   and, of keys with params in bytes, of every channel of a group its params, its zero as a float
//   keys            a warp has 32 channels of a group: a lane two channels and half the tokens, read twice
//   values          a warp has a row: a lane four channels
//   words           a thread gathers a word's codes from shared memory
#pragma once

#include "backend/cuda/kernels/quantise_tile.cuh"

namespace kivi::cuda {

template <int Bits, Plane plane>
__device__ void write_words(const StorePart& part, const PackTile& tile) {
  const int head_dim = part.layout().head_dim;
  const int exclusive = exclusive_tokens(head_dim, Bits);
  const int begin = words_of_tokens(tile.first / exclusive * exclusive, head_dim, Bits, plane);
  const int end = words_of_tokens(round_up(tile.end, exclusive), head_dim, Bits, plane);
  const int n_words = end - begin;
#pragma unroll 1
  for (int i = static_cast<int>(threadIdx.x); i < tile.n_heads * n_words; i += kStoreThreads) {
    const int head = i / n_words;
    const int word = begin + i % n_words;
    const uint8_t* codes = tile.codes + (head * tile.n_tokens() - tile.first) * tile.pitch;
    const auto code_of = [&](int token, int channel) { return uint32_t{codes[token * tile.pitch + channel]}; };
    const WordUpdate update = part.side_kind == Side::kKeys
                                  ? key_word<Bits, plane>(word, head_dim, tile.first, tile.end, code_of)
                                  : value_word<Bits, plane>(word, head_dim, tile.first, tile.end, code_of);
    if (update.mask == 0) continue;
    const int at = plane == Plane::kLow ? part.side().codes : part.side().high_plane;
    auto* words = reinterpret_cast<uint32_t*>(tile.block + head * tile.block_bytes + at);
    words[word] = update.mask == ~0U ? update.codes : update.apply(words[word]);
  }
}

template <typename C>
__device__ void pack_tile(const StorePart& part, const PackTile& tile) {
  if (part.side_kind == Side::kValues) {
    quantise_values<C>(part, tile);
  } else if constexpr (C::kParams == ParamFormat::kByte) {
    quantise_keys_in_units<typename C::Number>(part, tile);
  } else {
    quantise_keys<typename C::Number>(part, tile);
  }
  __syncthreads();
  switch (part.side().bits) {
    case 2:
      return write_words<2, Plane::kLow>(part, tile);
    case 3:
      if constexpr (C::kHighPlane) {
        write_words<3, Plane::kLow>(part, tile);
        write_words<3, Plane::kHigh>(part, tile);
      }
      return;
    case 4:
      return write_words<4, Plane::kLow>(part, tile);
    default:
      return write_words<8, Plane::kLow>(part, tile);
  }
}

// Packs tokens. On return no thread of the block reads the window any more.
template <typename C>
__device__ void pack(const StorePart& part, TokenRange tokens) {
  PackTile tile;
  tile.rows = reinterpret_cast<const std::byte**>(dynamic_shared());
  tile.codes = reinterpret_cast<uint8_t*>(tile.rows + kPackRows);
  tile.pitch = code_pitch(part.layout().head_dim);
  tile.block_bytes = part.problem.block_bytes;
#pragma unroll 1
  for (int u = tokens.begin; u < tokens.end; u += tile.n_tokens()) {
    tile.first = u % format::kPageTokens;
    tile.end = min(format::kPageTokens, tile.first + tokens.end - u);
    const int heads_at_once = min(part.n_heads, kPackRows / tile.n_tokens());
#pragma unroll 1
    for (int h = 0; h < part.n_heads; h += heads_at_once) {
      tile.n_heads = min(heads_at_once, part.n_heads - h);
      tile.block = part.timeline(part.head + h).block(u);
      const auto row = static_cast<int>(threadIdx.x);
      if (row < tile.n_rows()) {
        const int token = part.side().policy.sinks + u + row % tile.n_tokens();
        tile.rows[row] = part.timeline(part.head + h + row / tile.n_tokens()).row(token);
      }
      __syncthreads();
      pack_tile<C>(part, tile);
    }
  }
}

}  // namespace kivi::cuda
