// From config.json to GGUF's metadata: the steps that model types have in common.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "io/model_file.h"

namespace kivi {

// Errors begin with config.json's path and name its key: kCorrupt for a value that is missing or of another kind,
// kUnsupported for one that kivi does not run.
class HfTranslation {
 public:
  // Adds to `content`, whose tensors have GGUF's names. Metadata keys get `architecture` before them.
  HfTranslation(ModelFile config, std::string_view architecture, ModelContent& content);

  const ModelFile& config() const { return config_; }
  Tensors& tensors() { return content_.tensors; }

  // What config.json leaves out.
  void assume(std::string_view key, MetadataValue value);
  // Fails unless the value is `expected`, if it is there.
  void require(std::string_view key, std::string_view expected);
  void require(std::string_view key, bool expected);

  void set(std::string_view key, MetadataValue value);
  void copy_int(std::string_view hf_key, std::string_view key) { set(key, config_.get_int(hf_key)); }
  void copy_float(std::string_view hf_key, std::string_view key) { set(key, config_.get_float(hf_key)); }
  void copy_int_if_there(std::string_view hf_key, std::string_view key);
  void copy_float_if_there(std::string_view hf_key, std::string_view key);
  void add_vector(std::string name, std::vector<float> values);

  // num_hidden_layers, hidden_size and the like.
  void set_sizes();
  // Base, turned part and scaling of RoPE, as Transformers 4 and 5 write them.
  void set_rope();
  // sliding_window, and which layers have it.
  void set_sliding_window();

 private:
  std::string rope_prefix() const;
  void set_llama3_factors(const std::string& rope);
  void set_longrope(const std::string& rope);
  int64_t rotary_dims() const;

  ModelFile config_;
  std::string architecture_;
  ModelContent& content_;
};

}  // namespace kivi
