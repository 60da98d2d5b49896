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

// All but the weights. Throws Error as read_gguf, read_config and make_tokenizer do.
std::unique_ptr<Model> open_model(const std::string& path);
// Those of an open model: of its file, or random ones (random_model.h).
void load_weights(Backend& backend, Model& model);

}  // namespace kivi
