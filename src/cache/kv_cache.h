// The cache of all sequences of one model under one KvConfig: pages, block tables, and what happens to them in a step.
//
// A step, for the engine:  reserve() pages for the new tokens of some sequences; the model runs its layers on
// view(layer); commit() makes the new tokens count and frees the pages that left the windows.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "backend/tensor.h"
#include "cache/kv_config.h"
#include "cache/kv_memory.h"
#include "cache/page_pool.h"

namespace kivi {

// A sequence's place in the cache, from create() to release().
using SequenceId = int32_t;

struct KvCapacity {
  int64_t max_tokens = 0;    // of one sequence
  int max_sequences = 1;     // alive at a time
  int64_t memory_bytes = 0;  // of all pages together; 0: as much as max_sequences of max_tokens need
};

struct StepSequence {
  SequenceId id = -1;
  int32_t n_new = 0;  // >= 1
};

class KvCache {
 public:
  // The backend must outlive the cache. Throws Error{kInvalidArgument} if config does not fit the shape,
  // Error{kOutOfMemory} if the backend has no room.
  KvCache(Backend& backend, const KvShape& shape, const KvConfig& config, const KvCapacity& capacity);

  // Throws Error{kOutOfMemory} if max_sequences are alive.
  SequenceId create();
  // Frees its pages; should a step be reserved (one that failed), it is no longer in it.
  void release(SequenceId id);
  int64_t n_tokens(SequenceId id) const;

  // Whether the cache, were it empty, could hold a sequence of n_tokens.
  bool can_ever_hold(int64_t n_tokens) const;
  // Whether a new sequence of n_tokens fits now, beside those that are alive (as they are now).
  bool can_hold_now(int64_t n_tokens) const;

  // Gets pages for the new tokens of a step and prepares view(). False, and nothing has changed, if there are too few
  // free pages. Throws Error{kInvalidArgument} if a sequence would pass max_tokens.
  bool reserve(std::span<const StepSequence> step);
  // The cache of the reserved step's sequences, in their order, before the step. Valid until commit().
  format::KvBatchView view(int layer) const;
  // Row borders of the reserved step, for the backend: [B + 1] i32.
  AnyView seq_begin() const;
  std::span<const StepSequence> step() const { return step_; }  // the reserved one; empty if none is
  void commit();

  const KvShape& shape() const { return shape_; }
  const KvConfig& config() const { return config_; }
  const KvCapacity& capacity() const { return capacity_; }
  // Of all sequences that are alive; its allocated_bytes() are the bytes of the pages taken from the pools.
  KvMemory memory() const;
  KvMemory memory(SequenceId id) const { return memory_of(shape_, config_, n_tokens(id)); }
  // Bytes of the pages in use, counted where they are allocated.
  int64_t allocated_bytes() const;
  int64_t capacity_bytes() const { return limit_bytes_; }

 private:
  struct Sequence {
    bool alive = false;
    int64_t n_tokens = 0;
    std::vector<PageId> packed;      // by page index
    std::vector<PageId> key_window;  // by slot; kNoPage where there is none
    std::vector<PageId> value_window;
  };

  Sequence& at(SequenceId id);
  const Sequence& at(SequenceId id) const;
  KvPages missing_pages(const Sequence& sequence, int64_t n_after) const;
  bool fits(const KvPages& need) const;
  void take_pages(Sequence& sequence, int64_t n_after);
  void free_left_pages(Sequence& sequence);
  void upload_tables();

  Backend* backend_;
  KvShape shape_;
  KvConfig config_;
  KvCapacity capacity_;
  format::PageLayout layout_;
  format::WindowPolicy key_policy_;
  format::WindowPolicy value_policy_;
  int64_t limit_bytes_ = 0;

  PagePool packed_pool_;
  PagePool window_pool_;
  std::vector<Sequence> sequences_;

  std::vector<StepSequence> step_;  // reserved and not yet committed
  Tensor packed_table_;
  Tensor key_table_;
  Tensor value_table_;
  Tensor n_past_;
  Tensor seq_begin_;
};

}  // namespace kivi
