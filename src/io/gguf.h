// GGUF v2 and v3. Every count, length and offset of the file is checked before it is used, and what is allocated is in
// proportion to the file's size.
#pragma once

#include <cstddef>
#include <span>
#include <string>

#include "io/gguf.h"
#include "io/model_file.h"

namespace kivi {

// Maps the file and reads its header; tensor data is not touched. Throws what MappedFile throws; Error{kCorrupt} naming
// the field of a malformed file; Error{kUnsupported} for a version, byte order or tensor type that kivi does not read.
ModelFile read_gguf(const std::string& path);
// Reads from memory, for tests and fuzzing. `bytes` must outlive the result, whose path is "memory".
ModelFile read_gguf(std::span<const std::byte> bytes);

}  // namespace kivi
