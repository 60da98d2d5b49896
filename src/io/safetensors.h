// Safetensors: one file, or a folder of them with an index. Every length and offset is checked before it is used, and
// what is allocated is in proportion to the file's size.
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <vector>

#include "io/mapped_file.h"
#include "io/model_file.h"

namespace kivi {

// The tensors of one file; views point into `bytes`. `source` begins every message. Throws Error{kCorrupt} naming the
// tensor of a malformed file, Error{kUnsupported} for a type other than F32, F16 and BF16.
Tensors read_safetensors(std::span<const std::byte> bytes, const std::string& source);

struct SafetensorsFolder {
  std::vector<MappedFile> files;
  Tensors tensors;
};

// The tensors of the files that model.safetensors.index.json names, or of model.safetensors. Throws Error{kNotFound} if
// there is neither, or for a file that the index names; Error{kCorrupt} for a tensor that is not where the index says.
SafetensorsFolder read_safetensors_folder(const std::string& folder);

}  // namespace kivi
