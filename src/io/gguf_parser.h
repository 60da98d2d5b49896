// The reader of GGUF's bytes behind GgufFile.
#pragma once

#include <cstddef>
#include <span>
#include <string>

#include "io/gguf.h"

namespace kivi {

// Views of the result point into `bytes`; `source` names the file in messages. Throws as GgufFile does.
GgufContent parse_gguf(std::span<const std::byte> bytes, const std::string& source);

}  // namespace kivi
