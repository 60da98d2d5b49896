// Attention over the paged cache and storing into it, one number at a time through the index functions of format/.
#pragma once

#include "backend/backend.h"
#include "reference/algorithm1.h"

namespace kivi::reference {

// The stored keys (values) of sequence b and KV head `head` that the next token sees, oldest first, dequantised: rows
// cache.first_seen(n_past) .. n_past - 1.
std::vector<Row> stored_keys(const format::KvBatchView& cache, int64_t b, int head);
std::vector<Row> stored_values(const format::KvBatchView& cache, int64_t b, int head);

// Backend::attend in double, with f32 queries. Backend::store_kv.
void attend(const AttendArgs& args);
void store_kv(const StoreKvArgs& args);

}  // namespace kivi::reference
