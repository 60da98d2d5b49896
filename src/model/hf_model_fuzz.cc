// libFuzzer: whatever config.json says, read_hf_folder and read_config either throw Error or give a model whose tensors
// lie in its files. The first byte chooses the tensors: those of a golden model.
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "core/error.h"
#include "io/json_metadata.h"
#include "model/config.h"
#include "model/hf_model.h"

namespace {

const std::vector<kivi::SafetensorsFolder>& models() {
  static const std::vector<kivi::SafetensorsFolder> all = [] {
    std::vector<kivi::SafetensorsFolder> folders;
    for (const char* name : {"falcon-40b", "gemma2", "gemma3", "llama", "mistral", "phi3", "qwen2", "qwen3"}) {
      folders.push_back(kivi::read_safetensors_folder(std::string(KIVI_SOURCE_DIR "/tests/golden/models/") + name));
    }
    return folders;
  }();
  return all;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const auto config = std::as_bytes(std::span(data + 1, size - 1));
  try {
    const kivi::ModelFile file = kivi::translate_hf({"memory",
                                                     {},
                                                     {.metadata = kivi::read_json_metadata(config, "memory"),
                                                      .tensors = models()[data[0] % models().size()].tensors}});
    for (const auto& [name, tensor] : file.tensors()) {
      for (const kivi::WeightView& part : tensor.parts()) {
        std::vector<float> row(static_cast<size_t>(part.cols));
        kivi::decode_row(part, 0, row);
        kivi::decode_row(part, part.rows - 1, row);
      }
    }
    kivi::read_config(file);
  } catch (const kivi::Error&) {
  }
  return 0;
}
