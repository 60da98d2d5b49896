#include "model/hf_model.h"

#include <algorithm>
#include <array>
#include <filesystem>
#include <optional>
#include <utility>

#include "core/error.h"
#include "core/quoted.h"
#include "io/json_metadata.h"
#include "model/arch/hf_arch.h"

namespace kivi {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kConfigFile = "config.json";

// Models that see have a model of text in them, and its settings within theirs.
constexpr std::string_view kTextConfig = "text_config.";
constexpr std::array<std::pair<std::string_view, std::string_view>, 2> kTextPrefixes = {
    {{"language_model.", ""}, {"model.language_model.", "model."}}};
constexpr std::array<std::string_view, 4> kOtherPrefixes = {"vision_tower.", "multi_modal_projector.",
                                                            "model.vision_tower.", "model.multi_modal_projector."};
constexpr std::string_view kFrequencies = "rotary_emb.inv_freq";  // old files have what follows from the settings

Metadata with_text_config(Metadata config) {
  Metadata text;
  for (const auto& [key, value] : config) {
    if (key.starts_with(kTextConfig)) text.emplace(key.substr(kTextConfig.size()), value);
  }
  text.merge(config);
  return text;
}

std::string config_path(const ModelFile& files) {
  return (fs::path(files.path()) / kConfigFile).string();
}

const HfArchitecture& find_hf_architecture(const ModelFile& config) {
  constexpr std::array kArchitectures = {&kHfFalcon,  &kHfGemma2, &kHfGemma3, &kHfLlama,
                                         &kHfMistral, &kHfPhi3,   &kHfQwen2,  &kHfQwen3};
  const std::string type = config.get_string("model_type");
  std::string known;
  for (const HfArchitecture* architecture : kArchitectures) {
    if (architecture->model_type == type) return *architecture;
    known += fmt::format("{}{}", known.empty() ? "" : ", ", architecture->model_type);
  }
  fail(ErrorCode::kUnsupported, "{}: unknown model_type {}: kivi runs {}", config.path(), kivi::quoted(type), known);
}

// "model.layers.12.mlp" as "model.layers.N.mlp" and "12".
struct LayerName {
  std::string general;
  std::string number;
};
LayerName split_layer(const std::string& name) {
  for (size_t dot = name.find('.'); dot != std::string::npos; dot = name.find('.', dot + 1)) {
    const size_t end = name.find_first_not_of("0123456789", dot + 1);
    if (end == std::string::npos || end == dot + 1 || name[end] != '.') continue;
    return {name.substr(0, dot + 1) + "N" + name.substr(end), name.substr(dot + 1, end - dot - 1)};
  }
  return {name, ""};
}

const HfName* find_name(const HfArchitecture& architecture, std::string_view stem) {
  for (const std::span<const HfName> names : {architecture.names, architecture.shared_names}) {
    const auto known = std::ranges::find(names, stem, &HfName::hf);
    if (known != names.end()) return &*known;
  }
  return nullptr;  // it has none
}

// GGUF's name; nothing for a tensor that the model of text does not have.
std::optional<std::string> gguf_name(const ModelFile& files, const HfArchitecture& architecture, std::string name) {
  const auto begins = [&](std::string_view prefix) { return name.starts_with(prefix); };
  if (std::ranges::any_of(kOtherPrefixes, begins) || name.ends_with(kFrequencies)) return std::nullopt;
  const std::string whole_name = name;
  for (const auto& [prefix, inner] : kTextPrefixes) {
    if (begins(prefix)) name = std::string(inner) + name.substr(prefix.size());
  }
  const auto [general, number] = split_layer(name);
  const size_t kind = general.rfind('.');
  const std::string_view stem = std::string_view(general).substr(0, kind);
  const HfName* known = kind == std::string::npos ? nullptr : find_name(architecture, stem);
  if (known != nullptr) {
    std::string renamed = std::string(known->gguf) + general.substr(kind);
    if (!number.empty()) renamed.replace(renamed.find('N'), 1, number);
    return renamed;
  }
  fail(ErrorCode::kUnsupported, "{}: tensor {} has no place in a {} model as kivi runs it", files.path(),
       kivi::quoted(whole_name), architecture.model_type);
}

Tensors rename_tensors(const ModelFile& files, const HfArchitecture& architecture) {
  Tensors tensors;
  for (const auto& [name, tensor] : files.tensors()) {
    const std::optional<std::string> renamed = gguf_name(files, architecture, name);
    if (renamed && !tensors.emplace(*renamed, tensor).second) {
      fail(ErrorCode::kCorrupt, "{}: tensor {} is there under two names", files.path(), kivi::quoted(name));
    }
  }
  return tensors;
}

// Where both are one, files may have the output matrix all the same.
void drop_tied_output(const HfArchitecture& architecture, HfTranslation& t, const std::string& folder) {
  constexpr std::string_view kOutput = "output.weight";
  const auto output = t.tensors().find(kOutput);
  const bool is_tied = t.config().find_bool("tie_word_embeddings").value_or(architecture.is_tied);
  if (is_tied && output != t.tensors().end()) t.tensors().erase(output);
  if (!is_tied && output == t.tensors().end()) {
    fail(ErrorCode::kCorrupt, "{}: tensor 'lm_head.weight' is missing, and tie_word_embeddings is false", folder);
  }
}

void add_to_norms(float offset, HfTranslation& t) {
  Tensors norms;
  for (const auto& [name, tensor] : t.tensors()) {
    if (name.ends_with("norm.weight") && tensor.shape.size() == 1) norms.emplace(name, tensor);
  }
  for (const auto& [name, tensor] : norms) {
    std::vector<float> values(static_cast<size_t>(tensor.view.cols));
    decode_row(tensor.view, 0, values);
    for (float& value : values) value += offset;
    t.add_vector(name, std::move(values));
  }
}

void require_activation(const HfArchitecture& architecture, HfTranslation& t) {
  // The first of them that is there says it.
  for (const char* key : {"hidden_activation", "hidden_act", "activation"}) {
    if (!t.config().find_string(key)) continue;
    t.require(key, architecture.activation);
    return;
  }
}

void require_plain_weights(const ModelFile& config) {
  const auto method = config.find_string("quantization_config.quant_method");
  if (!method) return;
  fail(ErrorCode::kUnsupported,
       "{}: the weights are quantised by {}; kivi reads F32, F16 and BF16 from folders, and "
       "quantised weights from GGUF files",
       config.path(), kivi::quoted(*method));
}

// Of the model, for people.
std::string model_name(const ModelFile& files) {
  fs::path path = fs::path(files.path()).lexically_normal();
  if (path.filename().empty() || path.filename() == ".") path = path.parent_path();
  return files.find_string("_name_or_path").value_or(path.filename().string());
}

}  // namespace

ModelFile read_hf_files(const std::string& folder) {
  const std::string config = (fs::path(folder) / kConfigFile).string();
  std::error_code ignored;
  if (!fs::exists(config, ignored)) {
    fail(ErrorCode::kNotFound, "{}: has no {}; give a GGUF file, or a folder as Hugging Face has it", folder,
         kConfigFile);
  }
  Metadata metadata = with_text_config(read_json_metadata(config));
  SafetensorsFolder safetensors = read_safetensors_folder(folder);
  return {folder,
          std::move(safetensors.files),
          {.metadata = std::move(metadata), .tensors = std::move(safetensors.tensors)}};
}

ModelFile translate_hf(ModelFile files) {
  ModelFile config(config_path(files), {}, {.metadata = files.metadata(), .tensors = {}});
  const HfArchitecture& architecture = find_hf_architecture(config);
  require_plain_weights(config);

  ModelContent content;
  content.metadata.emplace("general.architecture", std::string(architecture.architecture));
  content.metadata.emplace("general.name", model_name(files));
  content.tensors = rename_tensors(files, architecture);
  HfTranslation translation(std::move(config), architecture.architecture, content);
  require_activation(architecture, translation);
  architecture.translate(translation);
  drop_tied_output(architecture, translation, files.path());
  if (architecture.norm_offset != 0.0F) add_to_norms(architecture.norm_offset, translation);
  return std::move(files).with(std::move(content));
}

}  // namespace kivi
