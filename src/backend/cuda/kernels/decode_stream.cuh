// The stream of a warp of decode attention: everything that its stretch of work reads, in the order in which it is
// computed with, copied to shared memory a few pieces ahead.
//
// Pieces of a step whose tokens are all packed: the keys of its page and KV head as they lie in the page, then the
// values. Pieces of any other step, 32 tokens (a span) at a time: packed keys or key rows; packed values; value rows;
// those that exist. Of packed ones only what the span needs is copied, to where it is in the whole.
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

// What a piece is.
enum class PieceKind : int32_t { kNone, kWholeKeys, kWholeValues, kPackedKeys, kKeyRows, kPackedValues, kValueRows };
struct alignas(16) Piece {
  PieceKind kind;
  int32_t span;          // of its step
  int32_t n;             // valid tokens from the span's first on
  int32_t value_packed;  // of them with packed values: may be negative or more than 32
  int32_t begins;        // 1 in the first piece that the warp has of a unit
  int32_t ends;          // in the last: the steps that it did; else 0
  // Of the unit.
  int32_t unit;
  int32_t n_steps;
  int32_t row;         // of the new token
  int32_t first_head;  // query head
  int32_t n_heads;
};

// What a warp keeps in shared memory: registers are for the arithmetic.
template <typename Config>
struct WarpMemory {
  WorkBegin begin;
  WorkBegin end;
  SequenceWork work;  // of the sequence whose pieces are asked for
  Piece pieces[Config::kSlots];
};

template <typename Config>
class DecodeStream {
 public:
  __device__ DecodeStream(const DecodeArgs& args, WarpMemory<Config>& memory, void* slots, int warp)
      : args_(args),
        memory_(memory),
        base_(shared_address(slots) + warp * Config::kSlots * Config::kSlotBytes),
        unit_(memory.begin.unit),
        sequence_(unit_ / args.units_per_sequence()),
        head_(unit_ % args.units_per_sequence() / args.groups_per_kv),
        group_(unit_ % args.groups_per_kv),
        next_step_(memory.begin.step) {}

  // The oldest piece; every lane may read it at address(). kNone: there are no more.
  __device__ const Piece& wait() const {
    cp_async_wait<Config::kSlots - 1>();
    __syncwarp();
    return memory_.pieces[slot_];
  }
  __device__ uint32_t address() const { return base_ + slot_ * Config::kSlotBytes; }

  // Asks for the next piece in the place of the oldest, which every lane is done with. To be called kSlots times before
  // the first wait().
  __device__ void advance() {
    __syncwarp();
    if (pieces_ == 0) next_step();
    Piece piece{};
    if (pieces_ != 0) {
      const auto bit = static_cast<uint32_t>(__ffs(static_cast<int>(pieces_)) - 1);
      pieces_ &= pieces_ - 1;
      piece = note(bit);
      copy(address(), piece);
    }
    cp_async_commit();
    if (Lane().id == 0) memory_.pieces[slot_] = piece;
    slot_ = slot_ + 1 == Config::kSlots ? 0 : slot_ + 1;
  }

 private:
  // Bits of `pieces_`: three a span, then those of a packed step.
  enum Kind : uint32_t { kKeys, kPackedValues, kValueRows, kKinds };
  static constexpr uint32_t kWholeKeys = kKinds * Config::kTokenSpans;
  static constexpr uint32_t kWholeValues = kWholeKeys + 1;
  static constexpr bool kSameBytes = Config::kExact && Config::kKeysBytes == Config::kValuesBytes;
  static constexpr int kMostSpanCodes = kStepTokens * Config::kHeadDim / 8 / Config::kTokenSpans *
                                        (Config::kKeyBits > Config::kValueBits ? Config::kKeyBits : Config::kValueBits);
  static constexpr int kMostParams = Config::kHalfBytes - Config::kTokenSpans * kMostSpanCodes;
  static constexpr int32_t kWindowPages = kStepTokens / format::kWindowPageTokens;

  __device__ bool at_end() const {
    return unit_ > memory_.end.unit || (unit_ == memory_.end.unit && next_step_ >= memory_.end.step);
  }

  // Waits for the lengths of sequence_.
  __device__ void enter_sequence() {
    const SequenceWork work = sequence_work(args_.cache, args_.seq_begin, sequence_);
    __syncwarp();
    memory_.work = work;  // every lane writes the same
    __syncwarp();
    entered_ = true;
    load_tables(next_step_);
  }

  // Where the tokens of a step are: its packed page, and in lanes 0..7 and 8..15 its pages of key and value rows. Loads
  // that are asked for a step ahead, for the answer takes long.
  __device__ void load_tables(int32_t step) {
    const SequenceWork& work = memory_.work;
    if (step >= work.n_steps) return;
    const StepTokens tokens(work, step);
    const int64_t b = sequence_;
    const bool in_sinks = step < work.sink_steps;
    const int32_t index = in_sinks ? step : step - work.sink_steps;
    if (Config::kPacked && max(tokens.key_packed, tokens.value_packed) > 0) {
      next_page_ = __ldg(args_.cache.packed_table.data + b * args_.cache.packed_table.stride[0] + index);
    }
    if (tokens.all_packed()) return;
    const int lane = Lane().id;
    const auto& table = lane < kWindowPages ? args_.cache.key_window_table : args_.cache.value_window_table;
    const int32_t sink_slots = args_.cache.key_policy.sink_slots();  // the same on both sides
    const auto slots = static_cast<int32_t>(table.shape[1]);
    const int32_t page = index * kWindowPages + lane % kWindowPages;
    const int32_t slot = in_sinks ? page : sink_slots + page % (slots - sink_slots);
    if (lane < 2 * kWindowPages && slot < slots) next_rows_ = __ldg(table.data + b * table.stride[0] + slot);
  }

  // To the next step, if there is one. A sequence is entered when the pieces of the one before are all under way.
  __device__ void next_step() {
    while (!at_end()) {
      if (!entered_) enter_sequence();
      const SequenceWork& work = memory_.work;
      if (next_step_ >= work.n_steps) {
        next_unit();
        continue;
      }
      const StepTokens tokens(work, next_step_);
      pieces_ = 1U << kWholeKeys | 1U << kWholeValues;
      if (!tokens.all_packed()) {
        pieces_ = 0;
#pragma unroll
        for (int span = 0; span < Config::kTokenSpans; ++span) {
          const int first = span * format::kTileSpan;
          if (first < tokens.n) pieces_ |= 1U << (kKinds * span + kKeys);
          if (first < tokens.value_packed) pieces_ |= 1U << (kKinds * span + kPackedValues);
          if (tokens.has_value_rows(span)) pieces_ |= 1U << (kKinds * span + kValueRows);
        }
      }
      tokens_ = tokens;
      step_ = next_step_;
      step_unit_ = unit_;
      step_head_ = head_;
      step_group_ = group_;
      page_ = next_page_;
      rows_ = next_rows_;
      const int32_t first_step = unit_ == memory_.begin.unit ? memory_.begin.step : 0;
      const int32_t end_step = unit_ == memory_.end.unit ? memory_.end.step : work.n_steps;
      begins_ = step_ == first_step ? 1 : 0;
      ends_ = step_ == end_step - 1 ? end_step - first_step : 0;
      if (++next_step_ >= work.n_steps) next_unit();
      if (entered_ && !at_end()) load_tables(next_step_);
      return;
    }
  }
  __device__ void next_unit() {
    ++unit_;
    next_step_ = 0;
    if (++group_ < args_.groups_per_kv) return;
    group_ = 0;
    if (++head_ < args_.cache.layout.n_kv_heads) return;
    head_ = 0;
    ++sequence_;
    entered_ = false;
  }

  __device__ Piece note(uint32_t bit) {
    Piece piece;
    const auto span = static_cast<int>(bit / kKinds);
    const uint32_t kind = bit % kKinds;
    const int first = span * format::kTileSpan;
    if (bit >= kWholeKeys) {
      piece.kind = bit == kWholeKeys ? PieceKind::kWholeKeys : PieceKind::kWholeValues;
    } else if (kind == kKeys) {
      piece.kind = first < tokens_.key_packed ? PieceKind::kPackedKeys : PieceKind::kKeyRows;
    } else {
      piece.kind = kind == kPackedValues ? PieceKind::kPackedValues : PieceKind::kValueRows;
    }
    piece.span = span;
    piece.n = tokens_.n - first;
    piece.value_packed = tokens_.value_packed - first;
    piece.unit = step_unit_;
    piece.n_steps = memory_.work.n_steps;
    piece.row = static_cast<int32_t>(memory_.work.row);
    piece.first_head = args_.first_head(step_head_, step_group_);
    piece.n_heads = args_.n_heads(step_group_);
    piece.begins = begins_;
    piece.ends = pieces_ == 0 ? ends_ : 0;
    begins_ = 0;
    return piece;
  }

  __device__ void copy(uint32_t to, const Piece& piece) const {
    if (!Config::kPacked || piece.kind == PieceKind::kKeyRows || piece.kind == PieceKind::kValueRows) {
      copy_rows(to, piece);
      return;
    }
    const bool keys = piece.kind == PieceKind::kWholeKeys || piece.kind == PieceKind::kPackedKeys;
    const std::byte* from = args_.cache.packed_pages + page_ * args_.cache.packed_stride +
                            int64_t{step_head_} * args_.block_bytes + (keys ? 0 : keys_bytes());
    if (piece.kind == PieceKind::kWholeKeys || (piece.kind == PieceKind::kWholeValues && kSameBytes)) {
      copy_bytes<Config::kKeysBytes, Config::kExact>(to, from, keys_bytes());
      return;
    }
    if (piece.kind == PieceKind::kWholeValues) {
      copy_bytes<Config::kValuesBytes, Config::kExact>(to, from, values_bytes());
      return;
    }
    const int codes = kStepTokens * Config::kHeadDim / 8 * (keys ? Config::kKeyBits : Config::kValueBits);
    const int span_codes = codes / Config::kTokenSpans;
    copy_bytes<kMostSpanCodes, false>(to + piece.span * span_codes, from + piece.span * span_codes, span_codes);
    copy_bytes<kMostParams, false>(to + codes, from + codes, (keys ? keys_bytes() : values_bytes()) - codes);
  }
  __device__ int keys_bytes() const {
    return Config::kExact ? Config::kKeysBytes : args_.keys_bytes;
  }
  __device__ int values_bytes() const {
    return Config::kExact ? Config::kValuesBytes : args_.values_bytes;
  }

  // kExact: `bytes` is kMost, a multiple of what a warp copies at a time.
  template <int kMost, bool kExact>
  __device__ void copy_bytes(uint32_t to, const std::byte* from, int bytes) const {
    constexpr int kAtOnce = 16 * kWarpLanes;
    static_assert(!kExact || kMost % kAtOnce == 0);
    const int lane_offset = 16 * Lane().id;
    const uint64_t policy = evict_first_policy();
    to += lane_offset;
    from += lane_offset;
#pragma unroll
    for (int i = 0; i < kMost; i += kAtOnce) {
      if (kExact || i + lane_offset < bytes) cp_async_16(to + i, from + i, policy);
    }
  }

  // Rows of tokens that are packed, or do not exist, become zero: what is in their place may be anything.
  __device__ void copy_rows(uint32_t to, const Piece& piece) const {
    const bool keys = piece.kind == PieceKind::kKeyRows;
    const int span = piece.span;
    const int32_t n_packed = keys ? 0 : piece.value_packed;
    constexpr int kChunks = Config::kRowBytes / 16;
    const SequenceWork& work = memory_.work;
    const bool in_sinks = step_ < work.sink_steps;
    const int32_t first = (in_sinks ? step_ * kStepTokens : work.sinks + (step_ - work.sink_steps) * kStepTokens) +
                          span * format::kTileSpan;
    const int32_t n_stored = work.n_past - first;  // then the new one, then none
    const int32_t n_valid = in_sinks ? work.sinks - first : n_stored + 1;
    const int64_t head = int64_t{step_head_} * Config::kHeadDim;
    const uint16_t* new_row = keys ? args_.new_keys + work.row * args_.key_stride + head
                                   : args_.new_values + work.row * args_.value_stride + head;
    const uint64_t policy = evict_first_policy();
    const int lane = Lane().id;
    const int chunk = lane % kChunks;
    constexpr int kAtOnce = kWarpLanes / kChunks;  // rows that a warp copies at a time
#pragma unroll 1
    for (int page = 0; page < format::kTileSpan / format::kWindowPageTokens; ++page) {
      const int first_token = page * format::kWindowPageTokens;
      const int from_lane =
          (keys ? 0 : kWindowPages) + (span * format::kTileSpan + first_token) / format::kWindowPageTokens;
      const int32_t id = __shfl_sync(kAllLanes, rows_, from_lane);
      const int lane_token = lane / kChunks;
      const auto* stored =
          reinterpret_cast<const uint16_t*>(args_.cache.window_pages + id * args_.cache.window_stride) +
          head * format::kWindowPageTokens + lane_token * Config::kHeadDim + chunk * 8;
      const uint32_t rows = to + (first_token + lane_token) * Config::kRowBytes;
      const bool all_stored =
          n_packed <= first_token && first_token + format::kWindowPageTokens <= min(n_stored, n_valid);
#pragma unroll
      for (int i = 0; i < format::kWindowPageTokens; i += kAtOnce) {
        const int token = first_token + lane_token + i;
        const int place = chunk ^ (keys ? key_swizzle(token) : value_swizzle(token));
        const uint32_t at = rows + i * Config::kRowBytes + place * 16;
        if (all_stored) {
          cp_async_16(at, stored + i * Config::kHeadDim, policy);
        } else {
          const uint16_t* row = token < n_stored ? stored + i * Config::kHeadDim : new_row + chunk * 8;
          cp_async_or_zero_16(at, row, n_packed <= token && token < n_valid, policy);
        }
      }
    }
  }

  const DecodeArgs& args_;
  WarpMemory<Config>& memory_;
  uint32_t base_;  // shared address of the slots
  int slot_ = 0;   // the oldest piece
  // The step that comes next, and its tables.
  int32_t unit_;
  int32_t sequence_;
  int32_t head_;
  int32_t group_;
  int32_t next_step_;
  int32_t next_page_ = 0;
  int32_t next_rows_ = 0;
  bool entered_ = false;  // sequence_ is the one in memory_.work
  // The step whose pieces are asked for.
  uint32_t pieces_ = 0;  // those that are left
  StepTokens tokens_;
  int32_t step_ = 0;
  int32_t step_unit_ = 0;
  int32_t step_head_ = 0;
  int32_t step_group_ = 0;
  int32_t page_ = 0;
  int32_t rows_ = 0;
  int32_t begins_ = 0;
  int32_t ends_ = 0;
};

}  // namespace kivi::cuda
