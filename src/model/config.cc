#include "model/config.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <optional>
#include <string_view>
#include <utility>
#include <variant>

#include "core/error.h"
#include "core/quoted.h"
#include "model/tensors.h"

namespace kivi {
namespace {

constexpr int64_t kLargestSize = std::numeric_limits<int32_t>::max();  // the product of two fits 64 bits

int64_t get_size(const ModelFile& file, const std::string& key) {
  const int64_t size = file.get_int(key);
  if (size < 1 || size > kLargestSize) {
    fail(ErrorCode::kCorrupt, "{}: {} is {}, must be 1 to {}", file.path(), key, size, kLargestSize);
  }
  return size;
}

int64_t get_size_or(const ModelFile& file, const std::string& key, int64_t otherwise) {
  return file.metadata().contains(key) ? get_size(file, key) : otherwise;
}

double get_positive(const ModelFile& file, const std::string& key) {
  const double value = file.get_float(key);
  if (!std::isfinite(value) || value <= 0) {
    fail(ErrorCode::kCorrupt, "{}: {} is {}, must be above 0", file.path(), key, value);
  }
  return value;
}

double get_positive_or(const ModelFile& file, const std::string& key, double otherwise) {
  return file.metadata().contains(key) ? get_positive(file, key) : otherwise;
}

// A cap: 0 is none.
double get_cap_or(const ModelFile& file, const std::string& key, double otherwise) {
  return file.find_float(key) == 0.0 ? 0.0 : get_positive_or(file, key, otherwise);
}

// Metadata keys of the architecture: key_of(arch)("block_count") is "llama.block_count".
auto key_of(const Architecture& architecture) {
  return [prefix = architecture.name](std::string_view key) { return fmt::format("{}.{}", prefix, key); };
}

void read_heads(const ModelFile& file, ModelConfig& config) {
  const auto key = key_of(*config.architecture);
  config.n_heads = get_size(file, key("attention.head_count"));
  config.n_kv_heads = get_size_or(file, key("attention.head_count_kv"), config.n_heads);
  if (config.n_heads % config.n_kv_heads != 0) {
    fail(ErrorCode::kCorrupt, "{}: {} query heads are not a multiple of {} KV heads", file.path(), config.n_heads,
         config.n_kv_heads);
  }
  const bool has_head_dim = file.metadata().contains(key("attention.key_length"));
  if (!has_head_dim && config.hidden_size % config.n_heads != 0) {
    fail(ErrorCode::kCorrupt, "{}: hidden size {} is not a multiple of {} heads, and {} is missing", file.path(),
         config.hidden_size, config.n_heads, key("attention.key_length"));
  }
  config.head_dim = get_size_or(file, key("attention.key_length"), config.hidden_size / config.n_heads);
  const int64_t value_dim = get_size_or(file, key("attention.value_length"), config.head_dim);
  if (value_dim != config.head_dim) {
    fail(ErrorCode::kUnsupported, "{}: keys have {} elements and values {}; kivi runs models where both have the same",
         file.path(), config.head_dim, value_dim);
  }
}

// Files written before rope.scaling.* have rope.scale_linear; where the type is missing it is linear.
double read_frequency_scale(const ModelFile& file, const Architecture& architecture) {
  const auto key = key_of(architecture);
  const std::string type = file.find_string(key("rope.scaling.type")).value_or("linear");
  if (type == "none" || type == "longrope") return 1.0;  // the latter's factors are tensors
  if (type != "linear") {
    fail(ErrorCode::kUnsupported,
         "{}: RoPE scaling of type {}; kivi has none, linear, longrope and the factors of "
         "Llama 3",
         file.path(), quoted(type));
  }
  const double old_factor = get_positive_or(file, key("rope.scale_linear"), 1.0);
  return 1.0 / get_positive_or(file, key("rope.scaling.factor"), old_factor);
}

std::vector<float> read_frequency_factors(const ModelFile& file, const std::string& name) {
  const ModelTensor* tensor = file.find_tensor(name);
  if (tensor == nullptr) return {};
  std::vector<float> factors(static_cast<size_t>(tensor->view.cols));
  decode_row(tensor->view, 0, factors);
  if (!std::ranges::all_of(factors, [](float factor) { return std::isfinite(factor) && factor > 0; })) {
    fail(ErrorCode::kCorrupt, "{}: tensor '{}' has a factor that is not above 0", file.path(), name);
  }
  return factors;
}

// Longrope has factors for sequences up to the context before its extension, and others beyond it. Keys of one sequence
// must agree, so kivi takes the first and ends the context there. All are scaled for the extension.
void read_longrope(const ModelFile& file, ModelConfig& config) {
  const auto key = key_of(*config.architecture);
  config.rope.frequency_factors = read_frequency_factors(file, weight_name(config.architecture->names.rope_short));
  double scale = 1.0;
  if (!config.rope.frequency_factors.empty()) {
    const auto extended = static_cast<double>(config.context_length);
    config.context_length = std::min(
        config.context_length, get_size_or(file, key("rope.scaling.original_context_length"), config.context_length));
    const auto original = static_cast<double>(config.context_length);
    if (extended > original) scale = std::sqrt(1.0 + std::log(extended / original) / std::log(original));
  }
  config.rope.scale = get_positive_or(file, key("rope.scaling.attn_factor"), scale);
}

void read_rope(const ModelFile& file, ModelConfig& config) {
  const auto key = key_of(*config.architecture);
  RopeConfig& rope = config.rope;
  rope.pairing = config.architecture->rope_pairing;
  if (const std::optional<bool> is_interleaved = file.find_bool(key("rope.interleaved"))) {  // hf_translation.h
    rope.pairing = *is_interleaved ? RopePairing::kInterleaved : RopePairing::kHalfSplit;
  }
  rope.base = get_positive_or(file, key("rope.freq_base"), config.architecture->rope_base);
  rope.n_dims = get_size_or(file, key("rope.dimension_count"), config.head_dim);
  if (rope.n_dims % 2 != 0 || rope.n_dims > config.head_dim) {
    fail(ErrorCode::kCorrupt, "{}: RoPE turns {} dimensions, must be even and at most the head's {}", file.path(),
         rope.n_dims, config.head_dim);
  }
  rope.frequency_scale = read_frequency_scale(file, *config.architecture);
  read_longrope(file, config);
  if (rope.frequency_factors.empty()) {
    rope.frequency_factors = read_frequency_factors(file, weight_name(config.architecture->names.rope_freqs));
  }
}

// A pattern is a period (of so many layers the last attends to all) or a list of the layers that slide.
std::vector<bool> read_slides(const ModelFile& file, const ModelConfig& config) {
  const std::string key = key_of(*config.architecture)("attention.sliding_window_pattern");
  std::vector<bool> slides(static_cast<size_t>(config.n_layers));
  const auto found = file.metadata().find(key);
  if (found != file.metadata().end() && !std::holds_alternative<int64_t>(found->second)) {
    const std::vector<int64_t>& list = *file.find_ints(key);
    if (list.size() != slides.size()) {
      fail(ErrorCode::kCorrupt, "{}: {} has {} entries for {} layers", file.path(), key, list.size(), slides.size());
    }
    std::transform(list.begin(), list.end(), slides.begin(), [](int64_t entry) { return entry != 0; });
    return slides;
  }
  const int64_t period = get_size_or(file, key, config.architecture->full_attention_every);
  for (size_t i = 0; i < slides.size(); ++i) slides[i] = period == 0 || (static_cast<int64_t>(i) + 1) % period != 0;
  return slides;
}

void read_sliding_window(const ModelFile& file, ModelConfig& config) {
  const auto key = key_of(*config.architecture);
  const std::string window_key = key("attention.sliding_window");
  if (file.find_int(window_key) == 0) return;
  const int64_t window = get_size_or(file, window_key, config.architecture->sliding_window);
  if (window == 0) return;
  std::vector<bool> slides = read_slides(file, config);
  if (std::ranges::count(slides, true) == 0) return;
  config.sliding_window = window;
  config.slides = std::move(slides);
  if (config.architecture->sliding_rope_base == 0) return;
  config.sliding_rope =
      RopeConfig{.pairing = config.rope.pairing,
                 .base = get_positive_or(file, key("rope.freq_base_swa"), config.architecture->sliding_rope_base),
                 .n_dims = config.rope.n_dims};
}

void read_blocks(const ModelFile& file, ModelConfig& config) {
  const Architecture& architecture = *config.architecture;
  const TensorNames& names = architecture.names;
  const auto has = [&](const std::string& name) { return file.find_tensor(name) != nullptr; };
  const auto has_bias = [&](std::string_view name) { return has(bias_name(in_layer(0, name))); };
  config.norm = architecture.norm;
  config.norm_epsilon =
      get_positive(file, key_of(architecture)(architecture.norm == NormKind::kRms ? "attention.layer_norm_rms_epsilon"
                                                                                  : "attention.layer_norm_epsilon"));
  config.has_norm_bias = architecture.has_norm_bias;
  config.has_head_norm = architecture.has_head_norm;
  config.has_post_norms = architecture.has_post_norms;
  config.is_parallel = architecture.is_parallel;
  config.shares_norm = config.is_parallel && !has(weight_name(in_layer(0, names.attn_norm)));
  config.has_gate = architecture.has_gate;
  config.activation = architecture.activation;
  config.stacked_qkv = has(weight_name(in_layer(0, names.attn_qkv)));
  config.has_qkv_bias = has_bias(config.stacked_qkv ? names.attn_qkv : names.attn_q);
  config.has_output_bias = has_bias(names.attn_output);
  config.has_mlp_bias = has_bias(names.ffn_up);
  config.tied_output = !has(weight_name(names.output));
}

void read_scales(const ModelFile& file, ModelConfig& config) {
  const Architecture& architecture = *config.architecture;
  const auto key = key_of(architecture);
  if (architecture.scales_embedding) config.embedding_scale = std::sqrt(static_cast<double>(config.hidden_size));
  config.score_cap = get_cap_or(file, key("attn_logit_softcapping"), architecture.score_cap);
  config.logit_cap = get_cap_or(file, key("final_logit_softcapping"), architecture.logit_cap);
  if (file.metadata().contains(key("attention.scale"))) {
    config.softmax_scale = get_positive(file, key("attention.scale"));
  } else if (config.n_layers == architecture.wide_score_layers) {
    config.softmax_scale = std::sqrt(static_cast<double>(config.n_heads) / static_cast<double>(config.hidden_size));
  }
}

// By name; each once.
std::map<std::string, TensorSpec, std::less<>> tensors_of(const ModelFile& file, const ModelConfig& config) {
  std::map<std::string, TensorSpec, std::less<>> specs;
  for (TensorSpec& spec : all_of(model_tensors(config))) specs.emplace(spec.name, spec);
  const TensorNames& names = config.architecture->names;
  for (const std::string_view name : {names.rope_freqs, names.rope_short, names.rope_long}) {
    const TensorSpec factors{weight_name(name), 1, config.rope.n_dims / 2};
    if (file.find_tensor(factors.name) != nullptr) specs.emplace(factors.name, factors);
  }
  return specs;
}

void check_tensors(const ModelFile& file, const ModelConfig& config) {
  const auto specs = tensors_of(file, config);
  // Strangers first: an expert's matrix says more about the file than the dense one that is missing.
  for (const auto& [name, tensor] : file.tensors()) {
    if (!specs.contains(name)) {
      fail(ErrorCode::kUnsupported, "{}: tensor {} has no place in a {} model of {} layers as kivi runs it",
           file.path(), quoted(name), config.architecture->name, config.n_layers);
    }
  }
  for (const auto& [name, spec] : specs) {
    const WeightView& view = file.tensor(name).view;
    if (view.rows != spec.rows || view.cols != spec.cols) {
      fail(ErrorCode::kCorrupt, "{}: tensor '{}' is [{}, {}], but the metadata says [{}, {}]", file.path(), name,
           view.rows, view.cols, spec.rows, spec.cols);
    }
  }
}

std::string describe_formats(const ModelFile& file) {
  std::map<WeightFormat, int64_t> bytes_of;
  for (const auto& [name, tensor] : file.tensors()) {
    if (tensor.shape.size() > 1) bytes_of[tensor.view.format] += tensor.view.size_bytes();
  }
  std::vector<std::pair<int64_t, std::string_view>> formats;
  for (const auto& [format, bytes] : bytes_of) formats.emplace_back(bytes, name(format));
  std::ranges::sort(formats, std::greater<>());
  std::string description;
  for (const auto& [bytes, format] : formats)
    description += fmt::format("{}{}", description.empty() ? "" : ", ", format);
  return description;
}

}  // namespace

ModelConfig read_config(const ModelFile& file) {
  ModelConfig config;
  config.architecture = &find_architecture(file.get_string("general.architecture"));
  const auto key = key_of(*config.architecture);

  config.name = file.find_string("general.name").value_or(std::string(config.architecture->name));
  config.quantisation = describe_formats(file);
  config.n_layers = get_size(file, key("block_count"));
  if (config.n_layers > std::ssize(file.tensors())) {
    fail(ErrorCode::kCorrupt, "{}: {} is {}, but the file has only {} tensors", file.path(), key("block_count"),
         config.n_layers, file.tensors().size());
  }
  config.hidden_size = get_size(file, key("embedding_length"));
  config.ffn_size = get_size(file, key("feed_forward_length"));
  config.context_length = get_size(file, key("context_length"));
  config.vocab_size = file.tensor(weight_name(config.architecture->names.token_embd)).view.rows;
  read_heads(file, config);
  read_blocks(file, config);
  read_scales(file, config);
  read_rope(file, config);
  read_sliding_window(file, config);
  check_tensors(file, config);
  return config;
}

}  // namespace kivi
