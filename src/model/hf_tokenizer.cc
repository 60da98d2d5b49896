#include "model/hf_tokenizer.h"

#include <algorithm>
#include <charconv>
#include <filesystem>

#include "io/json_field.h"
#include "io/mapped_file.h"
#include "model/sentencepiece_model.h"
#include "model/tokenizer_json.h"

namespace kivi {
namespace {

// A JSON file, parsed; null if there is none.
class JsonFile {
 public:
  JsonFile(const std::string& folder, const char* name) : path_(folder + "/" + name) {
    if (!std::filesystem::exists(path_)) return;
    value_ = parse_json_object(MappedFile(path_).bytes(), path_);
  }

  JsonField root() const { return {value_, path_}; }

 private:
  std::string path_;
  nlohmann::json value_;
};

// A token by its text: a string, or an object with `content`.
std::optional<TokenId> find_token(const JsonField& field, const TokenizerSpec& spec) {
  if (field.is_null()) return std::nullopt;
  const std::string& text = field.is_object() ? field["content"].string() : field.string();
  if (text.empty()) return std::nullopt;
  const auto it = std::find(spec.tokens.begin(), spec.tokens.end(), text);
  if (it == spec.tokens.end()) field.fail(ErrorCode::kCorrupt, "is {}, which is no token", kivi::quoted(text));
  return static_cast<TokenId>(it - spec.tokens.begin());
}

void read_special_tokens(const JsonField& config, TokenizerSpec& spec) {
  const auto read = [&](const char* name, std::optional<TokenId>& id) {
    if (const std::optional<TokenId> found = find_token(config[name], spec)) id = found;
  };
  read("bos_token", spec.bos);
  read("eos_token", spec.eos);
  read("pad_token", spec.pad);
  read("unk_token", spec.unknown);
}

// The template, or of several the one called "default".
void read_chat_template(const JsonField& field, TokenizerSpec& spec) {
  if (field.is_string()) spec.chat_template = field.string();
  for (size_t i = 0; field.is_array() && i < field.array().size(); ++i) {
    if (field[i]["name"].string() == "default") spec.chat_template = field[i]["template"].string();
  }
}

void read_ends(const JsonField& field, TokenizerSpec& spec) {
  const auto add = [&](const JsonField& end) {
    if (std::cmp_greater_equal(end.id(), spec.tokens.size())) {
      end.fail(ErrorCode::kCorrupt, "is {}, but the vocabulary has {} tokens", end.id(), spec.tokens.size());
    }
    spec.ends.push_back(end.id());
  };
  if (field.is_null()) return;
  if (!field.is_array()) return add(field);
  for (size_t i = 0; i < field.array().size(); ++i) add(field[i]);
}

// What Transformers adds to a SentencePiece model.
void read_added_tokens(const JsonField& config, TokenizerSpec& spec) {
  if (config["added_tokens_decoder"].is_null()) return;
  const JsonField tokens = config["added_tokens_decoder"];
  for (const auto& [key, value] : tokens.object().items()) {
    TokenId id = -1;
    const auto [end, error] = std::from_chars(key.data(), key.data() + key.size(), id);
    if (error != std::errc() || end != key.data() + key.size() || id < 0) {
      tokens.fail(ErrorCode::kCorrupt, "has id {}, must be a number", kivi::quoted(key));
    }
    add_token(tokens[key], id, spec);
    spec.added.back().is_normalised = false;  // means nothing to these models
  }
  spec.scores.resize(spec.tokens.size());
}

TokenizerSpec read_sentencepiece(const std::string& path, const JsonField& config) {
  const MappedFile file(path);
  TokenizerSpec spec = parse_sentencepiece_model(file.bytes(), path);
  read_added_tokens(config, spec);
  if (!config["legacy"].boolean_or(true)) {
    for (TextChange& change : spec.normaliser) change.first_only = change.kind == TextChange::Kind::kPrepend;
  }
  return spec;
}

}  // namespace

TokenizerSpec read_hf_tokenizer(const std::string& folder) {
  const JsonFile config(folder, "tokenizer_config.json"), map(folder, "special_tokens_map.json"),
      generation(folder, "generation_config.json");
  const JsonFile json(folder, "tokenizer.json");
  const std::string model_path = folder + "/tokenizer.model";
  if (json.root().is_null() && !std::filesystem::exists(model_path)) {
    fail(ErrorCode::kNotFound, "{}: has neither tokenizer.json nor tokenizer.model; fetch one of them", folder);
  }
  TokenizerSpec spec =
      json.root().is_null() ? read_sentencepiece(model_path, config.root()) : parse_tokenizer_json(json.root());
  read_special_tokens(map.root(), spec);
  read_special_tokens(config.root(), spec);
  spec.add_bos = config.root()["add_bos_token"].boolean_or(spec.add_bos) && spec.bos;
  read_ends(generation.root()["eos_token_id"], spec);
  read_chat_template(config.root()["chat_template"], spec);
  const std::string template_path = folder + "/chat_template.jinja";
  if (std::filesystem::exists(template_path)) {
    const MappedFile file(template_path);
    spec.chat_template.assign(reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size());
  }
  return spec;
}

}  // namespace kivi
