// The reference as a backend: what every other backend is tested against. One thread, scalar, slow.
#pragma once

#include <memory>

#include "backend/backend.h"

namespace kivi {

std::unique_ptr<Backend> make_reference_backend();

}  // namespace kivi
