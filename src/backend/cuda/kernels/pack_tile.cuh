// Packing rows of keys or values into pages: the rows that one block of store.cu packs together.
//   shared memory   pointers to the rows; the rows, numbers of two channels in a word, in whose place their codes come
//                   (40 KiB for 128 rows of 128 channels); of keys what quantises a channel of a group, and its range
//   keys            a thread has four channels and some tokens of a group
//   values          a warp has a row: a lane four channels
//   words           a thread gathers words' codes from shared memory
#pragma once

#include "backend/cuda/device/ptx.cuh"
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
    const uint32_t* rows = tile.pairs + (head * tile.n_tokens() - tile.first) * tile.pitch;
    const auto code_of = [&](int token, int channel) {
      return uint32_t{reinterpret_cast<const uint16_t*>(rows + token * tile.pitch)[channel]};
    };
    const WordUpdate update = part.side_kind == Side::kKeys
                                  ? key_word<Bits, plane>(word, head_dim, tile.first, tile.end, code_of)
                                  : value_word<Bits, plane>(word, head_dim, tile.first, tile.end, code_of);
    if (update.mask == 0) continue;
    const int at = plane == Plane::kLow ? part.side().codes : part.side().high_plane;
    auto* words = reinterpret_cast<uint32_t*>(tile.block + head * tile.block_bytes + at);
    words[word] = update.mask == ~0U ? update.codes : update.apply(words[word]);
  }
}

// Where a group of fragments is kAcross tiles of channels of one tile of tokens, or of two where that is half the
// group, and the tile has whole spans of tokens. As write_words, but a thread has the words of rows r and r + 8, whose
// codes lie in the tile at steps known when compiling.
template <int Bits, int kAcross, Side kSide>
__device__ void write_whole_words(const StorePart& part, const PackTile& tile) {
  constexpr int kFragments = 16 / format::low_bits(Bits);
  constexpr int kDown = kFragments / kAcross;
  constexpr int kLanes = format::kFragmentGroupWords / 2;
  using Low = PlaneBits<Bits, Plane::kLow>;
  using High = PlaneBits<Bits, Plane::kHigh>;
  static_assert(kDown == 1 || kDown == 2);
  const auto row = static_cast<int>(threadIdx.x % kLanes / 8);
  const auto column = static_cast<int>(threadIdx.x % 8 / 2 * 2 + threadIdx.x % 2 * 8);
  const int groups_across = part.layout().head_dim / (kAcross * format::kTile);
  const int groups_of_head = tile.n_tokens() / (kDown * format::kTile) * groups_across;
#pragma unroll 1
  for (int i = static_cast<int>(threadIdx.x / kLanes); i < tile.n_heads * groups_of_head; i += kStoreThreads / kLanes) {
    const int head = i / groups_of_head;
    const int group = i - head * groups_of_head;
    const int down = group / groups_across;
    const int across = (group - down * groups_across) * kAcross;
    const int token = format::spread_number({down * kDown, kSide == Side::kKeys ? row : column});
    const int channel =
        kSide == Side::kKeys ? format::spread_number({across, column}) : format::rows_number({across, row});
    const uint32_t* from = tile.pairs + (head * tile.n_tokens() + token) * tile.pitch + channel / 2;
    uint2 low = {};
    uint32_t high = 0;
#pragma unroll
    for (int f = 0; f < kFragments; ++f) {
      const uint32_t* pair = from + format::spread_number({f / kAcross, 0}) * tile.pitch;
      uint32_t upper;  // row r
      uint32_t lower;  // row r + 8
      if constexpr (kSide == Side::kKeys) {
        pair += format::spread_number({f % kAcross, 0}) / 2;
        upper = pair[0];
        lower = pair[2 * tile.pitch];
      } else {
        pair += format::rows_number({f % kAcross, 0}) / 2;
        upper = __byte_perm(pair[0], pair[tile.pitch], 0x5410);
        lower = __byte_perm(pair[0], pair[tile.pitch], 0x7632);
      }
      if constexpr (format::has_high_plane(Bits)) {
        constexpr uint32_t kLowBits = format::max_code(Low::kLow) * 0x00010001U;
        high |= (upper >> Low::kLow & 0x00010001U) << High::at(f, 0);
        high |= (lower >> Low::kLow & 0x00010001U) << High::at(f, 1);
        upper &= kLowBits;
        lower &= kLowBits;
      }
      low.x |= upper << Low::at(f, 0);
      low.y |= lower << Low::at(f, 1);
    }
    const int to = (tile.first / (kDown * format::kTile) * groups_across + group) * kLanes +
                   static_cast<int>(threadIdx.x % kLanes);
    std::byte* block = tile.block + head * tile.block_bytes;
    reinterpret_cast<uint2*>(block + part.side().codes)[to] = low;
    if constexpr (format::has_high_plane(Bits)) {
      reinterpret_cast<uint32_t*>(block + part.side().high_plane)[to] = high;
    }
  }
}

// Returns whether it could.
template <int Bits, Side kSide>
__device__ bool write_if_whole(const StorePart& part, const PackTile& tile) {
  constexpr int kFragments = 16 / format::low_bits(Bits);
  const int across = part.layout().head_dim / format::kTile;
  if (((tile.first | tile.end) & (format::kTileSpan - 1)) != 0) return false;
  if (across % kFragments == 0) {
    write_whole_words<Bits, kFragments, kSide>(part, tile);
    return true;
  }
  if constexpr (kFragments == 8) {
    if (across == 4) write_whole_words<Bits, 4, kSide>(part, tile);
  }
  return kFragments == 8 && across == 4;
}

// kKeysOfSteps: keys of the head_dims that stores_tokens takes.
template <int Bits, bool kKeysOfSteps>
__device__ void write_codes(const StorePart& part, const PackTile& tile) {
  if constexpr (kKeysOfSteps) {
    write_if_whole<Bits, Side::kKeys>(part, tile);
  } else {
    const bool done = part.side_kind == Side::kKeys ? write_if_whole<Bits, Side::kKeys>(part, tile)
                                                    : write_if_whole<Bits, Side::kValues>(part, tile);
    if (done) return;
    write_words<Bits, Plane::kLow>(part, tile);
    if constexpr (format::has_high_plane(Bits)) write_words<Bits, Plane::kHigh>(part, tile);
  }
}

template <typename C, bool kKeysOfSteps>
__device__ void pack_tile(const StorePart& part, const PackTile& tile) {
  if (kKeysOfSteps || part.side_kind == Side::kKeys) {
    quantise_keys<C>(part, tile);
  } else {
    quantise_values<C>(part, tile);
  }
  __syncthreads();
  switch (part.side().bits) {
    case 2:
      return write_codes<2, kKeysOfSteps>(part, tile);
    case 3:
      return write_codes<3, kKeysOfSteps>(part, tile);
    case 4:
      return write_codes<4, kKeysOfSteps>(part, tile);
    default:
      return write_codes<8, kKeysOfSteps>(part, tile);
  }
}

// Packs tokens u .. u + n_tokens - 1 of a page, of n_heads heads from h on.
template <typename C, bool kKeysOfSteps>
__device__ void pack_together(const StorePart& part, int h, int n_heads, int u, int n_tokens) {
  PackTile tile;
  tile.rows = reinterpret_cast<const std::byte**>(dynamic_shared());
  tile.pairs = reinterpret_cast<uint32_t*>(tile.rows + part.problem.tile_rows);
  tile.pitch = pair_pitch(part.layout().head_dim);
  tile.block = part.problem.block(*part.problem.packed_page(part.sequence.b, u), h);
  tile.block_bytes = part.problem.block_bytes;
  tile.first = u % format::kPageTokens;
  tile.end = tile.first + n_tokens;
  tile.n_heads = n_heads;
  const auto row = static_cast<int>(threadIdx.x);
  if (row < tile.n_rows()) {
    const int head = row / n_tokens;
    tile.rows[row] = part.timeline(h + head).row(part.side().policy.sinks + u + row - head * n_tokens);
  }
  __syncthreads();
  pack_tile<C, kKeysOfSteps>(part, tile);
}

// Packs tokens. On return no thread of the block reads the window any more.
template <typename C>
__device__ void pack(const StorePart& part, TokenRange tokens) {
  int n_tokens;
#pragma unroll 1
  for (int u = tokens.begin; u < tokens.end; u += n_tokens) {
    n_tokens = min(tokens.end, (u / format::kPageTokens + 1) * format::kPageTokens) - u;
    const int heads_at_once = min(part.n_heads, part.problem.tile_rows / n_tokens);
#pragma unroll 1
    for (int h = 0; h < part.n_heads; h += heads_at_once) {
      pack_together<C, false>(part, part.head + h, min(heads_at_once, part.n_heads - h), u, n_tokens);
    }
  }
}

}  // namespace kivi::cuda
