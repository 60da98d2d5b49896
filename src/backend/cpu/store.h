// Backend::store_kv on the CPU: quantise and pack what leaves the window, keep the rest in 16 bits.
#pragma once

#include "backend/backend.h"

namespace kivi::cpu {

void store_kv(const StoreKvArgs& args, int n_threads);

}  // namespace kivi::cpu
