#include "model/model.h"

#include <filesystem>
#include <string_view>

#include "core/error.h"
#include "io/gguf.h"
#include "model/hf_model.h"
#include "model/hf_tokenizer.h"
#include "model/random_model.h"
#include "model/tokenizer_spec.h"

namespace kivi {

std::string model_folder(const std::string& path) {
  namespace fs = std::filesystem;
  std::error_code ignored;
  if (fs::is_directory(path, ignored)) return path;
  const fs::path name = fs::path(path).filename();
  const bool is_part =
      name == "config.json" || name.extension() == ".safetensors" || path.ends_with(".safetensors.index.json");
  if (!is_part) return "";
  const fs::path folder = fs::path(path).parent_path();
  return folder.empty() ? "." : folder.string();
}

ModelFile read_model_file(const std::string& path) {
  const std::string folder = model_folder(path);
  return folder.empty() ? read_gguf(path) : read_hf_folder(folder);
}

ModelSummary summarise_model(const std::string& path) {
  const std::string folder = model_folder(path);
  ModelSummary summary{.kind = folder.empty() ? "GGUF" : "Hugging Face", .architecture = "", .name = path};
  try {
    const ModelFile file = folder.empty() ? read_gguf(path) : read_hf_files(folder);
    summary.architecture = file.find_string(folder.empty() ? "general.architecture" : "model_type").value_or("");
    summary.name = file.find_string("general.name").value_or(path);
    summary.n_tensors = std::ssize(file.tensors());
    for (const auto& [name, tensor] : file.tensors()) summary.weight_bytes += tensor.view.size_bytes();
  } catch (const Error&) {
    // Why is the caller's to say.
  }
  return summary;
}

std::unique_ptr<Model> open_model(const std::string& path) {
  const std::string folder = model_folder(path);
  auto model = std::make_unique<Model>();
  model->file = std::make_unique<ModelFile>(read_model_file(path));
  model->config = read_config(*model->file);
  TokenizerSpec spec = folder.empty() ? read_tokenizer_spec(*model->file) : read_hf_tokenizer(folder);
  model->chat_format = recognise_chat_format(spec.chat_template);
  model->default_system_prompt = default_system_prompt(spec.chat_template);
  model->tokenizer = make_tokenizer(std::move(spec));
  for (const auto& [name, tensor] : model->file->tensors()) model->weight_bytes += tensor.view.size_bytes();
  return model;
}

void load_weights(Backend& backend, Model& model, const ProgressCallback& progress) {
  model.weights = model.is_random() ? random_weights(backend, model.config, progress)
                                    : load_weights(backend, *model.file, model.config, progress);
}

}  // namespace kivi
