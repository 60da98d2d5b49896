#include "cache/page_pool.h"

#include "core/error.h"

namespace kivi {

PagePool::PagePool(Backend& backend, int64_t page_bytes, int64_t n_pages) : page_bytes_(page_bytes), n_pages_(n_pages) {
  if (page_bytes * n_pages > 0) memory_ = backend.allocate(static_cast<size_t>(page_bytes * n_pages));
}

PageId PagePool::take() {
  if (!free_.empty()) {
    const PageId id = free_.back();
    free_.pop_back();
    return id;
  }
  if (next_ >= n_pages_) fail(ErrorCode::kInternal, "page pool: all {} pages are taken", n_pages_);
  return static_cast<PageId>(next_++);
}

void PagePool::give_back(PageId id) {
  free_.push_back(id);
}

}  // namespace kivi
