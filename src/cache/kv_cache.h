// The cache of all sequences of one model under one KvConfig: pages, block tables, and what happens to them in a step.
//
// A step, for the engine:  reserve() pages for the new tokens of some sequences; the model runs its layers on
// view(layer); commit() makes the new tokens count and frees the pages that left the windows. What a step costs here
// grows with the pages that come and go, not with the lengths of the sequences. Layers that slide and layers that do
// not have pages and tables of their own (layer_group.h).
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <unordered_map>
#include <vector>

#include "backend/tensor.h"
#include "cache/kv_config.h"
#include "cache/kv_memory.h"
#include "cache/layer_group.h"
#include "cache/page_arena.h"
#include "cache/step_tables.h"

namespace kivi {

// A sequence's place in the cache, from create() to release().
using SequenceId = int32_t;
// Tokens that are stored for sequences to come, from store_prefix() to drop_prefix().
using PrefixId = int64_t;

struct KvCapacity {
  int64_t max_tokens = 0;    // of one sequence
  int max_sequences = 1;     // alive at a time
  int64_t memory_bytes = 0;  // of the arena of all pages, at most; 0: as much as max_sequences of max_tokens need
};

struct StepSequence {
  SequenceId id = -1;
  int32_t n_new = 0;  // >= 1
};

// The type of the window of a backend's caches: that of its activations where they have 16 bits.
inline DType window_dtype(DType activation) {
  return activation == DType::kBF16 ? DType::kBF16 : DType::kF16;
}

class KvCache {
 public:
  // The backend must outlive the cache. Throws Error{kInvalidArgument} if config does not fit the shape,
  // Error{kOutOfMemory} if the backend has no room or memory_bytes is too little for any page.
  KvCache(Backend& backend, const KvShape& shape, const KvConfig& config, const KvCapacity& capacity);

  // For measurements: pages lie in a random order, as in a cache that has been in use for long.
  void scatter_pages(uint32_t seed) { arena_.scatter(seed); }

  // Throws Error{kOutOfMemory} if max_sequences are alive.
  SequenceId create();
  // Frees its pages; should a step be reserved (one that failed), it is no longer in it.
  void release(SequenceId id);
  // Between steps. A sequence with the tokens of another one: it shares the pages that are full, and so are never
  // written again, and has copies of the others. None if there is no room for those or max_sequences are alive.
  std::optional<SequenceId> fork(SequenceId id);
  // The same in two parts: a prefix has no place in steps, does not count as alive, and its pages only as taken.
  std::optional<PrefixId> store_prefix(SequenceId id);
  std::optional<SequenceId> fork_prefix(PrefixId id);
  void drop_prefix(PrefixId id);

  int64_t n_tokens(SequenceId id) const { return at(id).n_tokens; }
  int n_sequences() const { return capacity_.max_sequences - static_cast<int>(free_ids_.size()); }  // alive

  // Whether the cache, were it empty, could hold a sequence of n_tokens.
  bool can_ever_hold(int64_t n_tokens) const;
  // Whether a new sequence of n_tokens fits now, beside those that are alive (as they are now).
  bool can_hold_now(int64_t n_tokens) const;

  // Gets pages for the new tokens of a step and prepares view(). False, and nothing has changed, if there are too few
  // free pages. Throws Error{kInvalidArgument} if a sequence would pass max_tokens.
  bool reserve(std::span<const StepSequence> step);
  // The cache of the reserved step's sequences, in their order, before the step; padded to n_sequences (at most
  // max_sequences) with sequences without tokens. Valid until commit(); the memory that it points into stays.
  format::KvBatchView view(int layer, int64_t n_sequences) const;
  format::KvBatchView view(int layer) const { return view(layer, std::ssize(step_)); }
  // Groups of layers whose views differ by their layer's pages alone, and a layer of each. A view names its group.
  int n_groups() const { return static_cast<int>(groups_.size()); }
  int first_layer(int group) const { return groups_[group].layers.front(); }
  // Row borders of the reserved step, for the backend: [n_sequences + 1] i32.
  AnyView seq_begin(int64_t n_sequences) const { return tables_.seq_begin(n_sequences); }
  AnyView seq_begin() const { return seq_begin(std::ssize(step_)); }
  std::span<const StepSequence> step() const { return step_; }  // the reserved one; empty if none is
  void commit();
  // Lives as long as the memory that views point into.
  const std::shared_ptr<const Buffer>& memory_handle() const { return tables_.memory(); }

  // Pages of a sequence that others hold too.
  KvPages shared_pages(SequenceId id) const;
  // Most pages that a sequence holds until it has n_tokens, within steps and between them.
  KvPages most_pages(int64_t n_tokens) const;

  // Of the model; no layer slides whose window no sequence outgrows.
  const KvShape& shape() const { return shape_; }
  const KvConfig& config() const { return config_; }
  const KvCapacity& capacity() const { return capacity_; }

  // Of all sequences that are alive, with what they share counted once; its allocated_bytes() are the bytes of the
  // pages in use.
  KvMemory memory() const;
  KvMemory memory(SequenceId id) const { return memory_of(shape_, config_, n_tokens(id)); }
  // Bytes of the pages in use, counted where they are allocated.
  int64_t allocated_bytes() const { return arena_.bytes_in_use(); }
  // The arena: its slabs in use now and at most, which include pages that are free within them, and its size.
  const PageArena& arena() const { return arena_; }
  int64_t capacity_bytes() const { return arena_.n_slabs() * arena_.layout().slab_bytes; }

 private:
  // Where the tables of a group are in a row.
  struct Columns {
    int64_t packed = 0;
    int64_t keys = 0;
    int64_t values = 0;
    int64_t end = 0;

    int32_t n_key_slots() const { return static_cast<int32_t>(values - keys); }
    int32_t n_value_slots() const { return static_cast<int32_t>(end - values); }
  };
  // A layer's group, and which of the group's layers it is.
  struct LayerPlace {
    int group = 0;
    int64_t index = 0;
  };
  struct Stored {
    int64_t n_tokens = 0;
    std::array<GroupSpans, format::kMostLayerGroups> spans{};  // between steps
    std::vector<PageId> pages{};  // as a row of the step's tables; kNoPage where there is none
  };
  struct Sequence : Stored {
    bool alive = false;
    uint64_t serial = 0;     // another one for every create()
    int64_t table_row = -1;  // where it was in the tables last
  };

  Sequence& at(SequenceId id);
  const Sequence& at(SequenceId id) const { return const_cast<KvCache*>(this)->at(id); }
  static std::vector<Columns> columns_of(std::span<const LayerGroup> groups, int64_t max_tokens);
  template <typename Visit>
  void for_each_entering_window(const LayerGroup& group, const GroupSpans& before, const GroupSpans& after,
                                Visit visit) const;
  KvPages missing_pages(const Sequence& sequence, int64_t n_after) const;
  void take_pages(Sequence& sequence, int64_t n_after);
  void leave_pages(Sequence& sequence, int64_t n_after);
  void free_page(PageId& page);
  template <typename AnyStored, typename Visit>
  void for_each_page(AnyStored& stored, Visit visit) const;
  std::optional<Stored> copy_of(const Stored& from, Holder holder);
  std::optional<SequenceId> create_from(const Stored& from);
  void fill_tables();

  Backend* backend_;
  KvShape shape_;
  KvConfig config_;
  KvCapacity capacity_;
  format::PageLayout layout_;
  DType window_dtype_;
  std::vector<LayerGroup> groups_;
  std::vector<Columns> columns_;    // by group
  std::vector<LayerPlace> places_;  // by layer

  PageArena arena_;
  StepTables tables_;
  std::vector<Sequence> sequences_;
  std::vector<SequenceId> free_ids_;
  std::unordered_map<PrefixId, Stored> prefixes_;
  PrefixId next_prefix_ = 0;
  uint64_t next_serial_ = 1;
  std::vector<uint64_t> row_owners_;  // serials, by row of the tables

  std::vector<StepSequence> step_;  // reserved and not yet committed
  std::vector<int32_t> changed_;    // columns of one sequence
};

}  // namespace kivi
