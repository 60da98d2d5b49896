// libFuzzer: whatever the bytes, read_gguf either throws Error or gives tensors that lie inside them.
#include <cstddef>
#include <cstdint>
#include <vector>

#include "core/error.h"
#include "io/gguf.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  try {
    const kivi::ModelFile file = kivi::read_gguf(std::as_bytes(std::span(data, size)));
    for (const auto& [name, tensor] : file.tensors()) {
      std::vector<float> row(static_cast<size_t>(tensor.view.cols));
      kivi::decode_row(tensor.view, 0, row);
      kivi::decode_row(tensor.view, tensor.view.rows - 1, row);
    }
  } catch (const kivi::Error&) {
  }
  return 0;
}
