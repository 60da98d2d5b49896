// Pages of one size in one stretch of backend memory. A page serves all layers: its layer l is at
// data() + id * page_bytes + l * page_bytes / n_layers.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "backend/backend.h"

namespace kivi {

using PageId = int32_t;
inline constexpr PageId kNoPage = -1;

class PagePool {
 public:
  PagePool() = default;
  PagePool(Backend& backend, int64_t page_bytes, int64_t n_pages);

  PageId take();  // there must be a free page
  void give_back(PageId id);

  std::byte* data() const { return memory_ ? memory_->data() : nullptr; }
  int64_t page_bytes() const { return page_bytes_; }
  int64_t n_pages() const { return n_pages_; }
  int64_t n_used() const { return next_ - static_cast<int64_t>(free_.size()); }
  int64_t n_free() const { return n_pages_ - n_used(); }

 private:
  std::unique_ptr<Buffer> memory_;
  int64_t page_bytes_ = 0;
  int64_t n_pages_ = 0;
  int64_t next_ = 0;          // pages from here on have never been used
  std::vector<PageId> free_;  // given back; the last one is taken first, while it is warm
};

}  // namespace kivi
