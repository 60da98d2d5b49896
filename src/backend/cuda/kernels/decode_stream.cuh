// The stream of a warp of decode attention: everything that its stretch of work reads, in the order in which it is
// computed with, copied to shared memory a few pieces ahead. Pieces of a unit: its queries; then of each step those
// that exist of: pages of key rows, packed keys and values, pages of value rows.
//
// Rows lie one after the other in a slot, their 16-byte chunks permuted so that the reads of operand A meet no bank
// twice: chunk c of the row of token t is at  c ^ key_swizzle(t)  or  c ^ value_swizzle(t).
#pragma once

#include <cstddef>

#include "backend/cuda/kernels/decode_config.cuh"

namespace kivi::cuda {

__device__ __forceinline__ int key_swizzle(int token) {
  return token % 2 * 4;
}
__device__ __forceinline__ int value_swizzle(int token) {
  return token / 4 % 4 * 2;
}

enum class PieceKind : int32_t {
  kNone,          // a slot that has not been used yet
  kEnd,           // there are no more
  kQueries,       // begins a unit
  kKeyRows,       // page `page` of the step
  kLastKeyRows,   // likewise, and no keys come after it
  kPacked,        // keys and values
  kPackedValues,  // after rows of keys
  kValueRows,     // page `page` of the step; what is not a row of the window is zero
};
struct alignas(16) Piece {
  PieceKind kind;
  int32_t page;  // of rows
  int32_t ends;  // in the last piece that the warp has of a unit: the steps that it did; else 0
  int32_t n;     // tokens of the step
  int32_t unit;
  int32_t row;      // of the new token
  int32_t n_steps;  // of the unit
  uint8_t n_heads;  // of the unit
  uint8_t unseen;   // of the tokens, the first
  bool values_in_rows_only;
};

// The steps whose pieces are to be asked for begin here.
struct StreamPlace {
  int32_t unit;
  int32_t sequence;
  int32_t step;
};

// What a warp keeps in shared memory: registers are for the arithmetic.
template <typename Config>
struct WarpMemory {
  WorkBegin begin;
  WorkBegin end;  // the next warp's begin
  StreamPlace next;
  // Whose pieces are asked for: of a sequence, of one of its units, of some steps.
  SequenceWork work;
  UnitPlace place;
  StepTokens tokens;             // of the first of the steps
  const std::byte* block;        // that has the packed ones
  Piece note;                    // what the pieces have in common, and where they end
  float4 scores[2][kWarpLanes];  // of rows: StepScores of each lane
};

template <typename Config>
class DecodeStream {
 public:
  // memory: begin and end are there. slots: of this warp.
  __device__ DecodeStream(const DecodeArgs& args, WarpMemory<Config>& memory, std::byte* slots)
      : args_(args), memory_(memory), slots_(slots), next_pages_(memory.begin.pages[min(Lane().id, kStepPages - 1)]) {
    if (Lane().id == 0) {
      memory_.next = {memory.begin.unit, memory.begin.unit / args.units_per_sequence(), memory.begin.step};
      memory_.work = memory.begin.work;
    }
    if (Lane().id < Config::kSlots) slot_piece(Lane().id * Config::kSlotBytes) = {};
    __syncwarp();
  }

  // The oldest piece; every lane may read what it says and, at address(), what it is.
  __device__ const Piece& wait() const {
    cp_async_wait<Config::kSlots - 1>();
    __syncwarp();
    return slot_piece(at_);
  }
  __device__ uint32_t address() const { return shared_address(slots_) + at_; }

  // Asks for the next piece in the place of the oldest, which every lane is done with.
  __device__ void advance() {
    __syncwarp();
    if (pieces_ == 0) next_steps();
    if (pieces_ != 0) {
      const auto bit = __ffs(static_cast<int>(pieces_)) - 1;
      pieces_ &= pieces_ - 1;
      ask(bit);
    } else if (Lane().id == 0) {
      slot_piece(at_) = {.kind = PieceKind::kEnd};
    }
    cp_async_commit();
    at_ = at_ == (Config::kSlots - 1) * Config::kSlotBytes ? 0 : at_ + Config::kSlotBytes;
  }

 private:
  // Bits of `pieces_`.
  static constexpr int kQueries = 0;
  static constexpr int kKeyRows = 1;                         // and the pages after it
  static constexpr int kPackedSteps = kKeyRows + kRowPages;  // of a page
  static constexpr int kValueRows = kPackedSteps + kPageSteps;

  // A slot ends with what its piece is.
  static_assert(sizeof(Piece) == Config::kNoteBytes);
  __device__ Piece& slot_piece(int slot) const {
    return *reinterpret_cast<Piece*>(slots_ + slot + Config::kPieceBytes);
  }

  // To the steps that come next, if there are any: those of a page that are packed whole, or one of another kind. Their
  // pages were asked for in time, for the answer takes long.
  __device__ void next_steps() {
    StreamPlace at = memory_.next;
    if (!find_steps(at)) return;
    const SequenceWork& work = memory_.work;
    const auto tokens = StepTokens::of<Config::kGeneral>(work, at.step);
    const int32_t begin_step = at.unit == memory_.begin.unit ? memory_.begin.step : 0;  // of the warp's in the unit
    const int32_t end_step = at.unit == memory_.end.unit ? memory_.end.step : work.n_steps;
    const int32_t in_page = tokens.first / kStepTokens % kPageSteps;
    int32_t n_steps = 1;
    if (Config::kPacked && tokens.all_packed() && tokens.unseen == 0) {
      const int32_t n_packed = (min(work.key_packed, work.value_packed) - tokens.first) / kStepTokens;
      n_steps = min(min(kPageSteps - in_page, n_packed), end_step - at.step);
    }
    pieces_ = packed_pieces(tokens, in_page, n_steps) | row_pieces(tokens);
    if (at.step == begin_step) {
      pieces_ |= 1U << kQueries;
      if (Lane().id == 0) memory_.place = UnitPlace::of(args_, at.unit, at.sequence);
    }
    __syncwarp();  // every lane knows by now where it was
    at.step += n_steps;
    if (Lane().id == kPackedLane) {
      memory_.block = args_.cache.packed_pages + next_pages_ * args_.cache.packed_stride +
                      int64_t{memory_.place.kv_head} * args_.block_bytes;
    }
    if (Lane().id == 0) {
      memory_.next = at;
      memory_.tokens = tokens;
      memory_.note = {.ends = at.step == end_step ? end_step - begin_step : 0,
                      .n = tokens.n,
                      .unit = at.unit,
                      .row = work.row,
                      .n_steps = work.n_steps,
                      .n_heads = static_cast<uint8_t>(memory_.place.n_heads),
                      .unseen = static_cast<uint8_t>(Config::kGeneral ? tokens.unseen : 0),
                      .values_in_rows_only = tokens.value_packed == 0};
    }
    pages_ = next_pages_;
    // Of the sequence's next unit the pages are the same.
    ask_for_pages(at.sequence, at.step < work.n_steps ? at.step : 0);
    __syncwarp();
  }
  // Goes on to the next unit if the one has no more steps. Returns whether the warp has any.
  __device__ bool find_steps(StreamPlace& at) {
    const WorkBegin& end = memory_.end;
    const auto is_end = [&] { return at.unit > end.unit || (at.unit == end.unit && at.step >= end.step); };
    if (is_end()) return false;
    if (at.step < memory_.work.n_steps) return true;
    ++at.unit;
    at.step = 0;
    if (is_end()) return false;
    if (at.unit < (at.sequence + 1) * args_.units_per_sequence()) return true;
    at.sequence = sequence_with_work(at.sequence + 1);
    at.unit = at.sequence * args_.units_per_sequence();
    if (is_end()) return false;
    __syncwarp();
    copy_work(args_.workspace.works[at.sequence]);
    __syncwarp();
    ask_for_pages(at.sequence, 0);
    return true;
  }
  // The first from `sequence` on: there is one, for the end is not before the last's.
  __device__ int32_t sequence_with_work(int32_t sequence) const {
    for (;; sequence += kWarpLanes) {
      const unsigned have = __ballot_sync(kAllLanes, args_.workspace.works[sequence + Lane().id].n_steps > 0);
      if (have != 0) return sequence + __ffs(static_cast<int>(have)) - 1;
    }
  }
  __device__ void ask_for_pages(int32_t sequence, int32_t step) {
    next_pages_ = step_page(args_.cache, sequence, StepTokens::of<Config::kGeneral>(memory_.work, step), Lane().id);
  }
  __device__ static uint32_t packed_pieces(const StepTokens& tokens, int32_t in_page, int32_t n_steps) {
    if (!Config::kPacked || !(tokens.key_packed || tokens.value_packed > 0)) return 0;
    return ((1U << n_steps) - 1U) << (kPackedSteps + in_page);
  }
  __device__ static uint32_t row_pieces(const StepTokens& tokens) {
    uint32_t pieces = 0;
    if (tokens.all_packed()) return pieces;
#pragma unroll
    for (int page = 0; page < kRowPages; ++page) {
      const int first = page * format::kWindowPageTokens;
      const int end = min(first + format::kWindowPageTokens, tokens.n);
      if (first >= tokens.n || (Config::kGeneral && end <= tokens.unseen)) continue;
      if (!tokens.key_packed) pieces |= 1U << (kKeyRows + page);
      if (tokens.value_packed < end) pieces |= 1U << (kValueRows + page);
    }
    return pieces;
  }
  // A number a lane: it would take registers that the loop has not.
  __device__ void copy_work(const SequenceWork& work) {
    constexpr int kNumbers = sizeof(SequenceWork) / sizeof(int32_t);
    if (Lane().id >= kNumbers) return;
    reinterpret_cast<int32_t*>(&memory_.work)[Lane().id] = reinterpret_cast<const int32_t*>(&work)[Lane().id];
  }
  __device__ void ask(int bit) {
    PieceKind kind = PieceKind::kQueries;
    int32_t page = 0;
    if (Config::kPacked && bit >= kPackedSteps && bit < kValueRows) {
      kind = memory_.tokens.key_packed ? PieceKind::kPacked : PieceKind::kPackedValues;
      copy_packed(bit - kPackedSteps);
    } else if (bit == kQueries) {
      copy_queries();
    } else if (bit < kPackedSteps) {
      page = bit - kKeyRows;
      const bool last = (page + 1) * format::kWindowPageTokens >= memory_.tokens.n;
      kind = last ? PieceKind::kLastKeyRows : PieceKind::kKeyRows;
      copy_rows<true>(page);
    } else {
      page = bit - kValueRows;
      kind = PieceKind::kValueRows;
      copy_rows<false>(page);
    }
    // A number a lane.
    constexpr int kNumbers = sizeof(Piece) / sizeof(int32_t);
    static_assert(offsetof(Piece, kind) == 0 && offsetof(Piece, page) == 4 && offsetof(Piece, ends) == 8);
    const int lane = Lane().id;
    if (lane >= kNumbers) return;
    int32_t number = reinterpret_cast<const int32_t*>(&memory_.note)[lane];
    if (lane == 0) number = static_cast<int32_t>(kind);
    if (lane == 1) number = page;
    if (lane == 2 && pieces_ != 0) number = 0;
    reinterpret_cast<int32_t*>(&slot_piece(at_))[lane] = number;
  }

  __device__ void copy_queries() const {
    const UnitPlace& place = memory_.place;
    const uint16_t* q = args_.q + memory_.work.row * args_.q_stride + int64_t{place.first_head} * Config::kHeadDim;
    const int n_chunks = place.n_heads * (Config::kRowBytes / 16);
    for (int chunk = Lane().id; chunk < n_chunks; chunk += kWarpLanes) {
      cp_async_16(address() + 16 * chunk, q + 8 * chunk, evict_first_policy());
    }
  }

  // Step `in_page` of the page. Scales and zeros of tokens whose values are not packed become zero.
  __device__ void copy_packed(int in_page) const {
    const int lane = Lane().id;
    const uint64_t policy = evict_first_policy();
    const std::byte* block = memory_.block;
    const uint32_t to = address();
    if (memory_.tokens.key_packed) {
      constexpr int kCodes = Config::kKeyCodes * kPageSteps;
      copy_codes<Config::kKeyLow, Config::kKeyCodes>(to, block, in_page, policy);
      if constexpr (Config::kByteParams) {
        static_assert(Config::kKeyGroupShift == 2, "a page has one group of keys");
        copy_chunks<2 * Config::kKeyParams + Config::kUnitBytes>(to + Config::kKeyCodes, block + kCodes, policy);
      } else {
        const int shift = key_group_shift();
        copy_params<Config::kKeyParams, 2>(to + Config::kKeyCodes, block + kCodes, in_page >> shift,
                                           kPageSteps >> shift, Config::kKeyParams, 16, policy);
      }
    }
    constexpr int kCodes = Config::kValueCodes * kPageSteps;
    const std::byte* values = block + args_.values_at;
    const int row = ValueGroups<Config>{args_}.count() * Config::kValueParams;
    const int in_row = 16 * lane % Config::kValueParams;
    const int valid = min(max(Config::kParamBytes * memory_.tokens.value_packed - in_row, 0), 16);
    copy_codes<Config::kValueLow, Config::kValueCodes>(to + Config::kPackedValuesAt, values, in_page, policy);
    copy_params<Config::kMostValueGroups * Config::kValueParams, Config::kValueRows>(
        to + Config::kPackedValuesAt + Config::kValueCodes, values + kCodes, in_page, kPageSteps, row, valid, policy);
  }
  __device__ int key_group_shift() const {
    return Config::kGroup == 0 ? args_.key_group_shift : Config::kKeyGroupShift;
  }
  // The planes of a step's codes: kLow bytes and what is more of kBytes.
  template <int kLow, int kBytes>
  __device__ static void copy_codes(uint32_t to, const std::byte* codes, int32_t in_page, uint64_t policy) {
    copy_chunks<kLow>(to, codes + in_page * kLow, policy);
    constexpr int kHigh = kBytes - kLow;
    if constexpr (kHigh > 0) copy_chunks<kHigh>(to + kLow, codes + kLow * kPageSteps + in_page * kHigh, policy);
  }
  template <int kBytes>
  __device__ static void copy_chunks(uint32_t to, const std::byte* from, uint64_t policy) {
    constexpr int kAtOnce = 16 * kWarpLanes;
    const int lane_offset = 16 * Lane().id;
#pragma unroll
    for (int i = 0; i < kBytes; i += kAtOnce) {
      if (i + kAtOnce <= kBytes || lane_offset < kBytes - i) {
        cp_async_16(to + lane_offset + i, from + lane_offset + i, policy);
      }
    }
  }

  // Row i of n rows of scales, of at most kMost bytes, and, with kRows 2, of zeros, which begin after the last; `valid`
  // bytes of every 16, the others become zero.
  template <int kMost, int kRows>
  __device__ static void copy_params(uint32_t to, const std::byte* scales, int i, int n, int bytes, int valid,
                                     uint64_t policy) {
    const std::byte* row = scales + i * bytes;
    const int to_zeros = (n - 1) * bytes;
#pragma unroll
    for (int first = 0; first < kRows * kMost; first += 16 * kWarpLanes) {
      const int at = first + 16 * Lane().id;
      if (at < kRows * bytes) cp_async_part_16(to + at, row + at + (at >= bytes ? to_zeros : 0), valid, policy);
    }
  }

  // Values of tokens that are packed, not seen, or do not exist, become zero, for what is in their place may be
  // anything; scores of such keys are masked.
  template <bool kKeys>
  __device__ void copy_rows(int page) const {
    constexpr int kChunks = Config::kRowBytes / 16;
    constexpr int kAtOnce = kWarpLanes / kChunks;  // rows that a warp copies at a time
    const SequenceWork& work = memory_.work;
    const StepTokens& tokens = memory_.tokens;
    const int lane = Lane().id;
    const int chunk = lane % kChunks;
    const int first = page * format::kWindowPageTokens;
    const int lane_token = first + lane / kChunks;  // of the step
    const int32_t id = __shfl_sync(kAllLanes, pages_, (kKeys ? 0 : kRowPages) + page);
    const int64_t head = int64_t{memory_.place.kv_head} * Config::kHeadDim;
    const auto* stored = reinterpret_cast<const uint16_t*>(args_.cache.window_pages + id * args_.cache.window_stride) +
                         head * format::kWindowPageTokens + (lane / kChunks) * Config::kHeadDim + chunk * 8;
    // Of the step's tokens these are stored, then comes the new one if the step has it.
    const int32_t n_stored = work.n_past - tokens.first - (tokens.in_sinks ? 0 : work.sinks);
    const uint64_t policy = evict_first_policy();
    const uint32_t rows = address() + lane / kChunks * Config::kRowBytes;
    const auto place = [&](int i) {
      return rows + i * Config::kRowBytes +
             (chunk ^ (kKeys ? key_swizzle(lane_token + i) : value_swizzle(lane_token + i))) * 16;
    };
    const int32_t unseen = Config::kGeneral ? tokens.unseen : 0;
    const int32_t begin = kKeys ? unseen : max(tokens.value_packed, unseen);
    if (begin <= first && first + format::kWindowPageTokens <= min(n_stored, tokens.n)) {
#pragma unroll
      for (int i = 0; i < format::kWindowPageTokens; i += kAtOnce) {
        cp_async_16(place(i), stored + i * Config::kHeadDim, policy);
      }
      return;
    }
    const uint16_t* fresh =
        (kKeys ? args_.new_keys + work.row * args_.key_stride : args_.new_values + work.row * args_.value_stride) +
        head + chunk * 8;
#pragma unroll 2
    for (int i = 0; i < format::kWindowPageTokens; i += kAtOnce) {
      const int token = lane_token + i;
      const uint16_t* row = token < n_stored ? stored + i * Config::kHeadDim : fresh;
      cp_async_part_16(place(i), row, begin <= token && token < tokens.n ? 16 : 0, policy);
    }
  }

  const DecodeArgs& args_;
  WarpMemory<Config>& memory_;
  std::byte* slots_;
  int at_ = 0;           // of the oldest piece, in slots_
  uint32_t pieces_ = 0;  // of the steps: those that are left
  // A lane's page (step_page) of the steps, and of those after them.
  int32_t pages_ = 0;
  int32_t next_pages_;
};

}  // namespace kivi::cuda
