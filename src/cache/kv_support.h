// Whether a backend can do with a cache what a model will ask of it, before a model is loaded.
#pragma once

#include "backend/backend.h"
#include "cache/kv_config.h"

namespace kivi {

// Asks the backend to attend over and to store into a cache without tokens. Throws Error{kInvalidArgument} as
// config.validate does, Error{kUnsupported} with what there is where a kernel is missing.
// score_cap: as AttendArgs has it.
void require_kernels(Backend& backend, const KvShape& shape, int64_t n_heads, const KvConfig& config,
                     float score_cap = 0.0F);

}  // namespace kivi
