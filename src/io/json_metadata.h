// JSON as metadata: what config.json and the like hold, with typed access and messages as GGUF's has.
#pragma once

#include <cstddef>
#include <span>
#include <string>

#include "io/model_file.h"

namespace kivi {

// The values of a JSON object. Those of an object within it have their path as a key: "rope_scaling.factor". Left out
// are null, and arrays whose elements are not all numbers, all bools or all strings. Throws Error{kCorrupt} that begins
// with `source` for text that is not JSON, not an object, or nested deeper than kDeepestJson.
inline constexpr int kDeepestJson = 16;
Metadata read_json_metadata(std::span<const std::byte> text, const std::string& source);
// Of a file. Throws what MappedFile throws, too.
Metadata read_json_metadata(const std::string& path);

}  // namespace kivi
