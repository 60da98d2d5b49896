// A 16-bit cache whose rows are overwritten, once their tokens leave the window, by what a reader of their packed
// groups would see: rounded to codes, then to binary16. It takes as many bytes as f16; what it is for is settings that
// the packed format does not have, measured as if it had them.
#pragma once

#include <string>
#include <vector>

#include "cache/kv_config.h"
#include "eval/forwarding_backend.h"
#include "study/group_axis.h"

namespace kivi {

struct FakeSide {
  Grouping grouping;
  format::WindowPolicy policy;  // of a layer that does not slide; those that do keep what they see
};

struct FakeCacheConfig {
  std::string name;
  FakeSide keys;
  FakeSide values;
};

// The groups and window of a packed configuration, along other axes. Groups of tokens enter `flush` tokens at a time as
// keys do, groups of channels token by token as values do. Of a configuration that rounds in other ways too (8-bit
// scales, rotations), no more than bits, groups and window are taken.
FakeCacheConfig with_axes(const KvConfig& config, const KvShape& shape, GroupAxis keys, GroupAxis values);

// In front of a backend of the host: what decoders on it store in f16 caches is rounded as `config` says. Throws
// Error{kUnsupported} on a device whose memory is not the host's.
class FakeCacheBackend : public ForwardingBackend {
 public:
  FakeCacheBackend(Backend& inner, FakeCacheConfig config);

  void store_kv(const StoreKvArgs& args) override;

 private:
  using RowOf = std::byte* (format::KvBatchView::*)(int64_t, int64_t, int) const;
  void round_side(const FakeSide& side, const StoreKvArgs& args, RowOf row_of, int64_t sequence);

  FakeCacheConfig config_;
  std::vector<float> rows_;
};

}  // namespace kivi
