// A model file, ready to run: configuration, tokenizer and weights on a backend.
#pragma once

#include <memory>
#include <string>

#include "backend/backend.h"
#include "io/model_file.h"
#include "model/config.h"
#include "model/weights.h"
#include "text/chat.h"
#include "text/tokenizer.h"

namespace kivi {

struct Model {
  ModelConfig config;
  std::unique_ptr<Tokenizer> tokenizer;
  ChatFormat chat_format = ChatFormat::kNone;  // recognised from the file's template
  std::string default_system_prompt;           // what the template adds when a conversation has no system message
  int64_t weight_bytes = 0;                    // of all tensors, as stored
  std::unique_ptr<ModelFile> file;             // mapped; weights may point into it; null for random weights
  ModelWeights weights;

  bool is_random() const { return file == nullptr; }
};

// The Hugging Face folder that `path` is or is a file of (config.json, safetensors); empty for any other file.
std::string model_folder(const std::string& path);
// Of a GGUF file, or of a folder as model_folder finds it. Throws Error as read_gguf and read_hf_folder do.
ModelFile read_model_file(const std::string& path);

// What the files say of a model, also of one that kivi does not run: as far as they can be read.
struct ModelSummary {
  std::string kind;          // "GGUF" or "Hugging Face"
  std::string architecture;  // as the files call it; empty if that cannot be read
  std::string name;
  int64_t n_tensors = 0;
  int64_t weight_bytes = 0;
};
ModelSummary summarise_model(const std::string& path);

// All but the weights. Throws Error as read_model_file, read_config and make_tokenizer do.
std::unique_ptr<Model> open_model(const std::string& path);
// Those of an open model: of its file, or random ones (random_model.h). Those of a file are read, also where the
// backend uses them in place.
void load_weights(Backend& backend, Model& model, const ProgressCallback& progress = {});

}  // namespace kivi
