#include "model/hf_translation.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <utility>

#include "core/error.h"
#include "core/quoted.h"

namespace kivi {

HfTranslation::HfTranslation(ModelFile config, std::string_view architecture, ModelContent& content)
    : config_(std::move(config)), architecture_(architecture), content_(content) {}

void HfTranslation::assume(std::string_view key, MetadataValue value) {
  if (config_.metadata().contains(key)) return;
  Metadata metadata = config_.metadata();
  metadata.emplace(key, std::move(value));
  config_ = ModelFile(config_.path(), {}, {.metadata = std::move(metadata), .tensors = {}});
}

void HfTranslation::require(std::string_view key, std::string_view expected) {
  const std::optional<std::string> value = config_.find_string(key);
  if (!value || *value == expected) return;
  fail(ErrorCode::kUnsupported, "{}: {} is {}; kivi runs {} models with '{}'", config_.path(), key,
       kivi::quoted(*value), architecture_, expected);
}

void HfTranslation::require(std::string_view key, bool expected) {
  if (config_.find_bool(key).value_or(expected) == expected) return;
  fail(ErrorCode::kUnsupported, "{}: {} is {}; kivi runs {} models where it is {}", config_.path(), key, !expected,
       architecture_, expected);
}

void HfTranslation::set(std::string_view key, MetadataValue value) {
  content_.metadata.insert_or_assign(fmt::format("{}.{}", architecture_, key), std::move(value));
}

void HfTranslation::copy_int_if_there(std::string_view hf_key, std::string_view key) {
  if (const std::optional<int64_t> value = config_.find_int(hf_key)) set(key, *value);
}

void HfTranslation::copy_float_if_there(std::string_view hf_key, std::string_view key) {
  if (const std::optional<double> value = config_.find_float(hf_key)) set(key, *value);
}

void HfTranslation::add_vector(std::string name, std::vector<float> values) {
  const std::vector<float>& kept = content_.made.emplace_back(std::move(values));
  const auto* data = reinterpret_cast<const std::byte*>(kept.data());
  const int64_t n = std::ssize(kept);
  content_.tensors.insert_or_assign(std::move(name),
                                    ModelTensor{.shape = {n}, .view = {WeightFormat::kF32, 1, n, data}, .order = {}});
}

void HfTranslation::set_sizes() {
  copy_int("num_hidden_layers", "block_count");
  copy_int("hidden_size", "embedding_length");
  copy_int("intermediate_size", "feed_forward_length");
  copy_int("max_position_embeddings", "context_length");
  copy_int("num_attention_heads", "attention.head_count");
  copy_int_if_there("num_key_value_heads", "attention.head_count_kv");
  copy_int_if_there("head_dim", "attention.key_length");
  copy_int_if_there("head_dim", "attention.value_length");
  copy_float("rms_norm_eps", "attention.layer_norm_rms_epsilon");
}

// Transformers 5 has rope_parameters, for each kind of layer where they differ; before it rope_scaling was beside
// rope_theta.
std::string HfTranslation::rope_prefix() const {
  for (const char* prefix : {"rope_parameters.full_attention.", "rope_parameters."}) {
    const auto found = config_.metadata().lower_bound(std::string_view(prefix));
    if (found != config_.metadata().end() && found->first.starts_with(prefix)) return prefix;
  }
  return "rope_scaling.";
}

void HfTranslation::set_rope() {
  const std::string rope = rope_prefix();
  // Rows of q and k are as the model's authors have them, where GGUF's files of some architectures have pairs together.
  set("rope.interleaved", false);
  copy_float_if_there("rope_theta", "rope.freq_base");
  copy_float_if_there(rope + "rope_theta", "rope.freq_base");
  set("rope.dimension_count", rotary_dims());

  const std::string old_type = config_.find_string(rope + "type").value_or("default");
  const std::string type = config_.find_string(rope + "rope_type").value_or(old_type);
  if (type == "linear") {
    set("rope.scaling.type", "linear");
    copy_float(rope + "factor", "rope.scaling.factor");
  } else if (type == "llama3") {
    set_llama3_factors(rope);
  } else if (type == "longrope" || type == "su") {
    set_longrope(rope);
  } else if (type != "default") {
    fail(ErrorCode::kUnsupported, "{}: {}rope_type is {}; kivi has default, linear, llama3 and longrope",
         config_.path(), rope, kivi::quoted(type));
  }
}

int64_t HfTranslation::rotary_dims() const {
  const int64_t n_heads = config_.get_int("num_attention_heads");
  if (n_heads < 1) fail(ErrorCode::kCorrupt, "{}: num_attention_heads is {}, must be above 0", config_.path(), n_heads);
  const int64_t head_dim = config_.find_int("head_dim").value_or(config_.get_int("hidden_size") / n_heads);
  const double whole = config_.find_float("partial_rotary_factor").value_or(1.0);
  const double part = config_.find_float(rope_prefix() + "partial_rotary_factor").value_or(whole);
  if (!(part > 0.0 && part <= 1.0) || head_dim < 1 || head_dim > INT32_MAX) {
    fail(ErrorCode::kCorrupt, "{}: partial_rotary_factor is {} of a head of {}, must be above 0 and at most 1",
         config_.path(), part, head_dim);
  }
  return static_cast<int64_t>(part * static_cast<double>(head_dim));
}

// Llama 3.1: wavelengths of which the old context has few turns are stretched by the factor, those of which it has many
// stay, and between it goes from one to the other.
void HfTranslation::set_llama3_factors(const std::string& rope) {
  const double factor = config_.get_float(rope + "factor");
  const double few = config_.get_float(rope + "low_freq_factor");
  const double many = config_.get_float(rope + "high_freq_factor");
  const double old_context = config_.get_float(rope + "original_max_position_embeddings");
  const double old_base = config_.find_float("rope_theta").value_or(10000.0);
  const double base = config_.find_float(rope + "rope_theta").value_or(old_base);
  const int64_t n_dims = rotary_dims();
  if (!(many > few) || !(factor > 0.0)) {
    fail(ErrorCode::kCorrupt, "{}: {}high_freq_factor is {}, must be above low_freq_factor {}; factor is {}",
         config_.path(), rope, many, few, factor);
  }
  std::vector<float> factors;
  for (int64_t i = 0; i < n_dims / 2; ++i) {
    const double frequency = std::pow(base, -2.0 * static_cast<double>(i) / static_cast<double>(n_dims));
    const double turns = old_context * frequency / (2.0 * std::numbers::pi);
    const double kept = std::clamp((turns - few) / (many - few), 0.0, 1.0);
    factors.push_back(static_cast<float>(1.0 / (kept + (1.0 - kept) / factor)));
  }
  add_vector("rope_freqs.weight", std::move(factors));
}

// Phi-3 of 128K: factors of each pair, for up to the old context and for beyond it, and a scale of q and k.
void HfTranslation::set_longrope(const std::string& rope) {
  const auto add = [&](const char* name, const char* tensor) {
    const std::string key = rope + name;
    const auto found = config_.metadata().find(key);
    const bool are_whole =
        found != config_.metadata().end() && std::holds_alternative<std::vector<int64_t>>(found->second);
    if (are_whole) {
      const std::vector<int64_t>& factors = *config_.find_ints(key);
      add_vector(tensor, {factors.begin(), factors.end()});
    } else if (const std::vector<double>* factors = config_.find_floats(key)) {
      add_vector(tensor, {factors->begin(), factors->end()});
    } else {
      fail(ErrorCode::kCorrupt, "{}: metadata key {} is missing", config_.path(), kivi::quoted(key));
    }
  };
  set("rope.scaling.type", "longrope");
  add("short_factor", "rope_factors_short.weight");
  add("long_factor", "rope_factors_long.weight");
  const auto context = static_cast<double>(config_.get_int("max_position_embeddings"));
  const auto nested = config_.find_int(rope + "original_max_position_embeddings");
  const int64_t old_context = nested ? *nested : config_.get_int("original_max_position_embeddings");
  set("rope.scaling.original_context_length", old_context);
  const double stretch = config_.find_float(rope + "factor").value_or(context / static_cast<double>(old_context));
  const double scale =
      stretch > 1.0 ? std::sqrt(1.0 + std::log(stretch) / std::log(static_cast<double>(old_context))) : 1.0;
  set("rope.scaling.attn_factor", config_.find_float(rope + "attention_factor").value_or(scale));
}

void HfTranslation::set_sliding_window() {
  const std::optional<int64_t> window = config_.find_int("sliding_window");
  if (!window || !config_.find_bool("use_sliding_window").value_or(true)) return;
  std::vector<int64_t> slides;  // by layer
  if (const std::vector<std::string>* types = config_.find_strings("layer_types")) {
    for (const std::string& type : *types) {
      if (type != "sliding_attention" && type != "full_attention") {
        fail(ErrorCode::kUnsupported, "{}: layer_types has {}; kivi has full_attention and sliding_attention",
             config_.path(), kivi::quoted(type));
      }
      slides.push_back(type == "sliding_attention");
    }
    if (std::ranges::count(slides, 1) == 0) return;
    set("attention.sliding_window_pattern", std::move(slides));
  } else {
    copy_int_if_there("sliding_window_pattern", "attention.sliding_window_pattern");
  }
  set("attention.sliding_window", *window);
}

}  // namespace kivi
