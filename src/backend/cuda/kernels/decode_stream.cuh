// The stream of a warp of decode attention: everything that its stretch of work reads, in the order in which it is
// computed with, copied to shared memory a few pieces ahead. Pieces of a unit: its queries; then of each step those
// that exist of: pages of key rows, packed keys and values, pages of value rows.
//
// Rows lie one after the other in a slot, their 16-byte chunks permuted so that the reads of operand A meet no bank
// twice: chunk c of the row of token t is at  c ^ key_swizzle(t)  or  c ^ value_swizzle(t).
#pragma once

#include "backend/cuda/kernels/decode_config.cuh"

namespace kivi::cuda {

__device__ __forceinline__ int key_swizzle(int token) {
  return token % 2 * 4;
}
__device__ __forceinline__ int value_swizzle(int token) {
  return token / 8 % 4 * 2;
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
  int32_t n;     // tokens of the step; of kQueries: query heads
  int32_t page;  // of rows
  int32_t ends;  // in the last piece that the warp has of a unit: the steps that it did; else 0
  int32_t unit;
  int32_t row;      // of the new token
  int32_t n_steps;  // of the unit
  bool values_in_rows_only;
  uint8_t unseen;  // of the tokens, the first
};

// What a warp keeps in shared memory: registers are for the arithmetic.
template <typename Config>
struct WarpMemory {
  WorkBegin begin;
  WorkBegin end;  // the next warp's begin
  // Whose pieces are asked for.
  SequenceWork work;
  StepTokens tokens;
};

template <typename Config>
class DecodeStream {
 public:
  // memory: begin and end are there. slots: of this warp.
  __device__ DecodeStream(const DecodeArgs& args, WarpMemory<Config>& memory, std::byte* slots)
      : args_(args),
        memory_(memory),
        slots_(slots),
        unit_(memory.begin.unit),
        sequence_(unit_ / args.units_per_sequence()),
        step_(memory.begin.step - 1) {
    next_pages_ = memory.begin.pages[min(Lane().id, kStepPages - 1)];
    if (Lane().id == 0) memory_.work = memory.begin.work;
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
    if (pieces_ == 0) next_step();
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
  static constexpr int kKeyRows = 1;  // and the pages after it
  static constexpr int kPackedStep = kKeyRows + kRowPages;
  static constexpr int kValueRows = kPackedStep + 1;

  // A slot ends with what its piece is.
  static_assert(sizeof(Piece) == Config::kNoteBytes);
  __device__ Piece& slot_piece(int slot) const {
    return *reinterpret_cast<Piece*>(slots_ + slot + Config::kPieceBytes);
  }

  // To the next step, if there is one; its pages were asked for a step ahead, for the answer takes long.
  __device__ void next_step() {
    ++step_;
    for (;; next_unit()) {
      const WorkBegin& end = memory_.end;
      if (unit_ > end.unit || (unit_ == end.unit && step_ >= end.step)) return;
      if (step_ < memory_.work.n_steps) break;
    }
    const SequenceWork& work = memory_.work;
    const auto tokens = StepTokens::of<Config::kGeneral>(work, step_);
    if (Lane().id == 0) memory_.tokens = tokens;
    const uint32_t packed = Config::kPacked && (tokens.key_packed || tokens.value_packed > 0) ? 1U : 0U;
    pieces_ = packed << kPackedStep;
    if (!tokens.all_packed()) {
#pragma unroll
      for (int page = 0; page < kRowPages; ++page) {
        const int first = page * format::kWindowPageTokens;
        const int end = min(first + format::kWindowPageTokens, tokens.n);
        if (Config::kGeneral && end <= tokens.unseen) continue;
        if (!tokens.key_packed && first < tokens.n) pieces_ |= 1U << (kKeyRows + page);
        if (first < tokens.n && tokens.value_packed < end) pieces_ |= 1U << (kValueRows + page);
      }
    }
    if (step_ == first_step()) pieces_ |= 1U << kQueries;
    pages_ = next_pages_;
    // Of the sequence's next unit the pages are the same.
    const int32_t next = step_ + 1 < work.n_steps ? step_ + 1 : 0;
    next_pages_ = step_page(args_.cache, sequence_, StepTokens::of<Config::kGeneral>(work, next), Lane().id);
    __syncwarp();
  }
  __device__ void next_unit() {
    ++unit_;
    step_ = 0;
    if (unit_ < (sequence_ + 1) * args_.units_per_sequence()) return;
    ++sequence_;
    if (unit_ > memory_.end.unit || (unit_ == memory_.end.unit && memory_.end.step == 0)) return;
    __syncwarp();
    copy_work(args_.workspace.works[sequence_]);
    __syncwarp();
    if (memory_.work.n_steps == 0) return;
    next_pages_ = step_page(args_.cache, sequence_, StepTokens::of<Config::kGeneral>(memory_.work, 0), Lane().id);
  }
  // A number a lane: it would take registers that the loop has not.
  __device__ void copy_work(const SequenceWork& work) {
    constexpr int kNumbers = sizeof(SequenceWork) / sizeof(int32_t);
    if (Lane().id >= kNumbers) return;
    reinterpret_cast<int32_t*>(&memory_.work)[Lane().id] = reinterpret_cast<const int32_t*>(&work)[Lane().id];
  }
  // Of the warp's steps of the unit.
  __device__ int32_t first_step() const {
    return unit_ == memory_.begin.unit ? memory_.begin.step : 0;
  }
  __device__ int32_t end_step() const {
    return unit_ == memory_.end.unit ? memory_.end.step : memory_.work.n_steps;
  }

  __device__ void ask(int bit) {
    const UnitPlace place(args_, unit_, sequence_);
    PieceKind kind = PieceKind::kQueries;
    const StepTokens& tokens = memory_.tokens;
    int32_t n = tokens.n;
    int32_t page = 0;
    if (Config::kPacked && bit == kPackedStep) {
      kind = tokens.key_packed ? PieceKind::kPacked : PieceKind::kPackedValues;
      copy_packed(place.kv_head, tokens);
    } else if (bit == kQueries) {
      n = place.n_heads;
      copy_queries(place);
    } else {
      const bool keys = bit < kPackedStep;
      page = bit - (keys ? kKeyRows : kValueRows);
      const bool last = (page + 1) * format::kWindowPageTokens >= n;
      kind = !keys ? PieceKind::kValueRows : last ? PieceKind::kLastKeyRows : PieceKind::kKeyRows;
      copy_rows(place.kv_head, tokens, keys, page);
    }
    if (Lane().id != 0) return;
    const int32_t ends = pieces_ == 0 && step_ == end_step() - 1 ? end_step() - first_step() : 0;
    slot_piece(at_) = {kind,
                       n,
                       page,
                       ends,
                       unit_,
                       memory_.work.row,
                       memory_.work.n_steps,
                       tokens.value_packed == 0,
                       static_cast<uint8_t>(Config::kGeneral ? tokens.unseen : 0)};
  }

  __device__ void copy_queries(const UnitPlace& place) const {
    const uint16_t* q = args_.q + memory_.work.row * args_.q_stride + int64_t{place.first_head} * Config::kHeadDim;
    const int n_chunks = place.n_heads * (Config::kRowBytes / 16);
    for (int chunk = Lane().id; chunk < n_chunks; chunk += kWarpLanes) {
      cp_async_16(address() + 16 * chunk, q + 8 * chunk, evict_first_policy());
    }
  }

  // Scales and zeros of tokens whose values are not packed become zero.
  __device__ void copy_packed(int32_t kv_head, const StepTokens& tokens) const {
    const int lane = Lane().id;
    const uint64_t policy = evict_first_policy();
    const int32_t in_page = tokens.first / kStepTokens % kPageSteps;
    const int32_t page = __shfl_sync(kAllLanes, pages_, kPackedLane);
    const std::byte* block =
        args_.cache.packed_pages + page * args_.cache.packed_stride + int64_t{kv_head} * args_.block_bytes;
    const uint32_t to = address();
    if (tokens.key_packed) {
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
    const int valid = min(max(Config::kParamBytes * tokens.value_packed - in_row, 0), 16);
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

  // Rows of tokens that are packed, not seen, or do not exist, become zero: what is in their place may be anything.
  __device__ void copy_rows(int32_t kv_head, const StepTokens& tokens, bool keys, int page) const {
    constexpr int kChunks = Config::kRowBytes / 16;
    constexpr int kAtOnce = kWarpLanes / kChunks;  // rows that a warp copies at a time
    const SequenceWork& work = memory_.work;
    const int lane = Lane().id;
    const int chunk = lane % kChunks;
    const int lane_token = page * format::kWindowPageTokens + lane / kChunks;  // of the step
    const int32_t id = __shfl_sync(kAllLanes, pages_, (keys ? 0 : kRowPages) + page);
    const int64_t head = int64_t{kv_head} * Config::kHeadDim;
    const auto* stored = reinterpret_cast<const uint16_t*>(args_.cache.window_pages + id * args_.cache.window_stride) +
                         head * format::kWindowPageTokens + (lane / kChunks) * Config::kHeadDim + chunk * 8;
    // Of the step's tokens these are stored, then comes the new one if the step has it.
    const int32_t n_stored = work.n_past - tokens.first - (tokens.in_sinks ? 0 : work.sinks);
    const int32_t n_packed = keys ? 0 : tokens.value_packed;
    const uint64_t policy = evict_first_policy();
    const uint32_t rows = address() + lane / kChunks * Config::kRowBytes;
    const int last = (page + 1) * format::kWindowPageTokens;
    const auto place = [&](int i) {
      return rows + i * Config::kRowBytes +
             (chunk ^ (keys ? key_swizzle(lane_token + i) : value_swizzle(lane_token + i))) * 16;
    };
    const int32_t n_absent = Config::kGeneral ? max(n_packed, tokens.unseen) : n_packed;  // or need not be here
    if (n_absent <= page * format::kWindowPageTokens && last <= min(n_stored, tokens.n)) {
#pragma unroll
      for (int i = 0; i < format::kWindowPageTokens; i += kAtOnce) {
        cp_async_16(place(i), stored + i * Config::kHeadDim, policy);
      }
      return;
    }
    const uint16_t* fresh =
        (keys ? args_.new_keys + work.row * args_.key_stride : args_.new_values + work.row * args_.value_stride) +
        head + chunk * 8;
#pragma unroll 1
    for (int i = 0; i < format::kWindowPageTokens; i += kAtOnce) {
      const int token = lane_token + i;
      const uint16_t* row = token < n_stored ? stored + i * Config::kHeadDim : fresh;
      cp_async_part_16(place(i), row, n_absent <= token && token < tokens.n ? 16 : 0, policy);
    }
  }

  const DecodeArgs& args_;
  WarpMemory<Config>& memory_;
  std::byte* slots_;
  int at_ = 0;  // of the oldest piece, in slots_
  // The step whose pieces are asked for.
  int32_t unit_;
  int32_t sequence_;
  int32_t step_;
  uint32_t pieces_ = 0;  // those that are left
  // A lane's page (step_page) of it, and of the step after it.
  int32_t pages_ = 0;
  int32_t next_pages_;
};

}  // namespace kivi::cuda
