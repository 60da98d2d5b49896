#include "model/model.h"

#include "io/gguf.h"
#include "model/random_model.h"
#include "model/tokenizer_spec.h"

namespace kivi {

std::unique_ptr<Model> open_model(const std::string& path) {
  auto model = std::make_unique<Model>();
  model->file = std::make_unique<ModelFile>(read_gguf(path));
  model->config = read_config(*model->file);
  TokenizerSpec spec = read_tokenizer_spec(*model->file);
  model->chat_format = recognise_chat_format(spec.chat_template);
  model->default_system_prompt = default_system_prompt(spec.chat_template);
  model->tokenizer = make_tokenizer(std::move(spec));
  for (const auto& [name, tensor] : model->file->tensors()) model->weight_bytes += tensor.view.size_bytes();
  return model;
}

void load_weights(Backend& backend, Model& model) {
  model.weights =
      model.is_random() ? random_weights(backend, model.config) : load_weights(backend, *model.file, model.config);
}

}  // namespace kivi
