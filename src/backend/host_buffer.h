// Memory of the backends that compute on the host.
#pragma once

#include <memory>

#include "backend/backend.h"

namespace kivi {

// Zeroed, page-aligned, committed as it is first written. Throws Error{kOutOfMemory}.
std::unique_ptr<Buffer> allocate_host_buffer(size_t size_bytes);

}  // namespace kivi
