// Hugging Face folders: config.json and safetensors, as a ModelFile under GGUF's names.
#pragma once

#include <string>

#include "io/model_file.h"
#include "io/safetensors.h"

namespace kivi {

// What is in the folder, under its own names: config.json's values as metadata (io/json_metadata.h), those of a
// "text_config" among the others, and the tensors. Throws what the readers of the files throw, and Error{kNotFound} for
// a folder without config.json.
ModelFile read_hf_files(const std::string& folder);

// The same model under GGUF's names. Views and `order` point to rows where the file has them; vectors that GGUF stores
// otherwise are made anew. Throws Error{kUnsupported} that lists what there is for a model type, activation or kind of
// RoPE that kivi does not run, and for a tensor without a place; Error{kCorrupt} for a value or tensor that is missing.
ModelFile translate_hf(ModelFile files);

inline ModelFile read_hf_folder(const std::string& folder) {
  return translate_hf(read_hf_files(folder));
}

}  // namespace kivi
