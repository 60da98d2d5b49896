#include "model/config.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <optional>
#include <string_view>
#include <utility>

#include "core/error.h"
#include "core/quoted.h"

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
  if (type == "none") return 1.0;
  if (type != "linear") {
    fail(ErrorCode::kUnsupported, "{}: RoPE scaling of type {}; kivi has none, linear and the factors of Llama 3",
         file.path(), quoted(type));
  }
  const double old_factor = get_positive_or(file, key("rope.scale_linear"), 1.0);
  return 1.0 / get_positive_or(file, key("rope.scaling.factor"), old_factor);
}

std::vector<float> read_frequency_factors(const ModelFile& file, const ModelConfig& config) {
  const ModelTensor* tensor = file.find_tensor(config.architecture->names.rope_freqs);
  if (tensor == nullptr) return {};
  std::vector<float> factors(static_cast<size_t>(tensor->view.cols));
  decode_row(tensor->view, 0, factors);
  if (!std::ranges::all_of(factors, [](float factor) { return std::isfinite(factor) && factor > 0; })) {
    fail(ErrorCode::kCorrupt, "{}: tensor '{}' has a factor that is not above 0", file.path(),
         config.architecture->names.rope_freqs);
  }
  return factors;
}

RopeConfig read_rope(const ModelFile& file, const ModelConfig& config) {
  const auto key = key_of(*config.architecture);
  RopeConfig rope;
  rope.pairing = config.architecture->rope_pairing;
  rope.base = get_positive_or(file, key("rope.freq_base"), rope.base);
  rope.n_dims = get_size_or(file, key("rope.dimension_count"), config.head_dim);
  if (rope.n_dims % 2 != 0 || rope.n_dims > config.head_dim) {
    fail(ErrorCode::kCorrupt, "{}: RoPE turns {} dimensions, must be even and at most the head's {}", file.path(),
         rope.n_dims, config.head_dim);
  }
  rope.frequency_scale = read_frequency_scale(file, *config.architecture);
  rope.frequency_factors = read_frequency_factors(file, config);
  return rope;
}

struct Shape {
  int64_t rows;
  int64_t cols;
};

std::map<std::string, Shape, std::less<>> tensors_of(const ModelConfig& config) {
  const TensorNames& names = config.architecture->names;
  const int64_t hidden = config.hidden_size;
  const int64_t q = config.n_heads * config.head_dim;
  const int64_t kv = config.n_kv_heads * config.head_dim;
  std::map<std::string, Shape, std::less<>> shapes;
  const auto add = [&](std::string_view name, Shape shape) { shapes.emplace(name, shape); };

  add(names.token_embd, {config.vocab_size, hidden});
  add(names.output_norm, {1, hidden});
  if (!config.tied_output) add(names.output, {config.vocab_size, hidden});
  if (!config.rope.frequency_factors.empty()) add(names.rope_freqs, {1, config.rope.n_dims / 2});
  for (int64_t layer = 0; layer < config.n_layers; ++layer) {
    add(names.attn_norm(layer), {1, hidden});
    add(names.attn_q(layer), {q, hidden});
    add(names.attn_k(layer), {kv, hidden});
    add(names.attn_v(layer), {kv, hidden});
    if (config.has_qkv_bias) {
      add(names.attn_q_bias(layer), {1, q});
      add(names.attn_k_bias(layer), {1, kv});
      add(names.attn_v_bias(layer), {1, kv});
    }
    add(names.attn_output(layer), {hidden, q});
    add(names.ffn_norm(layer), {1, hidden});
    add(names.ffn_gate(layer), {config.ffn_size, hidden});
    add(names.ffn_up(layer), {config.ffn_size, hidden});
    add(names.ffn_down(layer), {hidden, config.ffn_size});
  }
  return shapes;
}

void check_tensors(const ModelFile& file, const ModelConfig& config) {
  const auto shapes = tensors_of(config);
  // Strangers first: an expert's matrix says more about the file than the dense one that is missing.
  for (const auto& [name, tensor] : file.tensors()) {
    if (!shapes.contains(name)) {
      fail(ErrorCode::kUnsupported, "{}: tensor {} has no place in a {} model of {} layers as kivi runs it",
           file.path(), quoted(name), config.architecture->name, config.n_layers);
    }
  }
  for (const auto& [name, shape] : shapes) {
    const WeightView& view = file.tensor(name).view;
    if (view.rows != shape.rows || view.cols != shape.cols) {
      fail(ErrorCode::kCorrupt, "{}: tensor '{}' is [{}, {}], but the metadata says [{}, {}]", file.path(), name,
           view.rows, view.cols, shape.rows, shape.cols);
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
  const TensorNames& names = config.architecture->names;
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
  config.rms_eps = get_positive(file, key("attention.layer_norm_rms_epsilon"));
  config.vocab_size = file.tensor(names.token_embd).view.rows;
  config.tied_output = file.find_tensor(names.output) == nullptr;
  config.has_qkv_bias = file.find_tensor(names.attn_q_bias(0)) != nullptr;
  read_heads(file, config);
  config.rope = read_rope(file, config);
  check_tensors(file, config);
  return config;
}

}  // namespace kivi
