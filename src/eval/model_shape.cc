#include "eval/model_shape.h"

#include <fstream>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>

#include "core/error.h"
#include "model/random_model.h"

namespace kivi {
namespace {

using Json = nlohmann::json;

struct Field {
  bool is_required;
  std::function<void(ModelConfig&, const Json&)> set;
};

Field size(int64_t ModelConfig::*member, bool is_required = true) {
  return {is_required, [member](ModelConfig& config, const Json& value) { config.*member = value.get<int64_t>(); }};
}

const std::map<std::string, Field>& fields() {
  static const std::map<std::string, Field> fields = {
      {"n_layers", size(&ModelConfig::n_layers)},
      {"n_heads", size(&ModelConfig::n_heads)},
      {"n_kv_heads", size(&ModelConfig::n_kv_heads)},
      {"head_dim", size(&ModelConfig::head_dim)},
      {"hidden_size", size(&ModelConfig::hidden_size)},
      {"ffn_size", size(&ModelConfig::ffn_size)},
      {"vocab_size", size(&ModelConfig::vocab_size)},
      {"context_length", size(&ModelConfig::context_length, false)},
      {"name", {false, [](ModelConfig& config, const Json& value) { config.name = value.get<std::string>(); }}},
      {"rms_eps", {false, [](ModelConfig& config, const Json& value) { config.norm_epsilon = value.get<double>(); }}},
      {"rope_base", {false, [](ModelConfig& config, const Json& value) { config.rope.base = value.get<double>(); }}},
      {"tied_output", {false, [](ModelConfig& config, const Json& value) { config.tied_output = value.get<bool>(); }}},
      {"qkv_bias", {false, [](ModelConfig& config, const Json& value) { config.has_qkv_bias = value.get<bool>(); }}},
  };
  return fields;
}

std::string names_of(const auto& items, const auto& name_of) {
  std::string names;
  for (const auto& item : items) names += fmt::format("{}{}", names.empty() ? "" : ", ", name_of(item));
  return names;
}

ModelConfig from_json(const std::string& path, const Json& json) {
  ModelConfig config;
  config.name = path;
  config.context_length = 4096;
  config.norm_epsilon = 1e-5;
  for (const auto& [key, value] : json.items()) {
    const auto field = fields().find(key);
    if (field == fields().end()) {
      fail(ErrorCode::kInvalidArgument, "{}: field {} is unknown; use {}", path, key,
           names_of(fields(), [](const auto& known) { return known.first; }));
    }
    field->second.set(config, value);
  }
  for (const auto& [name, field] : fields()) {
    if (field.is_required && !json.contains(name)) {
      fail(ErrorCode::kInvalidArgument, "{}: field {} is missing; a model needs one", path, name);
    }
  }
  config.rope.n_dims = config.head_dim;
  return config;
}

}  // namespace

ModelConfig read_model_shape(const std::string& name_or_path) {
  for (const ModelConfig& known : known_shapes()) {
    if (known.name == name_or_path) return known;
  }
  std::ifstream in(name_or_path);
  if (!in) {
    fail(ErrorCode::kNotFound, "model shape {}: neither a JSON file nor one of {}", name_or_path,
         names_of(known_shapes(), [](const ModelConfig& known) { return known.name; }));
  }
  try {
    const Json json = Json::parse(in);
    if (!json.is_object()) fail(ErrorCode::kInvalidArgument, "{}: holds no JSON object", name_or_path);
    return from_json(name_or_path, json);
  } catch (const Json::exception& error) {
    fail(ErrorCode::kInvalidArgument, "{}: {}", name_or_path, error.what());
  }
}

}  // namespace kivi
