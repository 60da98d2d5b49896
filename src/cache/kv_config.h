// What is kept of a sequence and in how many bits. Presets are data; every field can be set apart.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "format/page_layout.h"
#include "format/window_policy.h"

namespace kivi {

// What the cache needs to know of a model.
struct KvShape {
  int n_layers = 0;
  int n_kv_heads = 0;
  int head_dim = 0;
  // Sliding layers attend to the newest `sliding_window` tokens, the attending one among them; the others to all.
  int64_t sliding_window = 0;
  std::vector<bool> slides{};  // by layer; empty: none does

  int64_t sliding_window_of(int layer) const { return !slides.empty() && slides[layer] ? sliding_window : 0; }
  int64_t elements_per_token() const { return int64_t{2} * n_layers * n_kv_heads * head_dim; }
};

struct KvConfig {
  static constexpr int kUnpackedBits = 16;

  std::string name;           // as the user wrote it: "kivi2", "kivi2:sinks=4"
  int key_bits = 16;          // 2, 3, 4, 8, or 16: never packed
  int value_bits = 16;        // likewise
  int group_size = 32;        // G: tokens in a key group; channels in a value group (at most head_dim)
  int residual_length = 128;  // R: newest tokens in 16 bits: keys 0..R-1 of them, values R; 0: as few as groups allow
  int sinks = 0;              // first tokens that stay in 16 bits for ever
  int param_bits = 16;        // of a group's scale and zero each; 8: format::ParamFormat::kByte, and values are rotated

  bool is_packed() const { return key_bits != kUnpackedBits || value_bits != kUnpackedBits; }

  // KIVI, section 3: keys keep nothing and are packed R at a time; values keep R and are packed one at a time.
  // sliding_window: of the layer; 0: it does not slide.
  format::WindowPolicy key_policy(int64_t sliding_window = 0) const;
  format::WindowPolicy value_policy(int64_t sliding_window = 0) const;
  format::PageLayout layout(const KvShape& shape) const;

  // Throws Error{kInvalidArgument} naming the value and the fix if the fields contradict each other or the shape.
  void validate(const KvShape& shape) const;
};

// "f16", "kivi4" and "kivi2": the paper's settings (G 32, R 128). "kivi-l", "kivi-m" and "kivi-s": better ones at the
// same bytes (docs/quality.md).
std::span<const KvConfig> kv_presets();
std::string kv_preset_names();  // with commas between them

// What a command takes that is not told: nearly the text of 16 bits from a fifth of the memory (docs/quality.md).
inline constexpr std::string_view kDefaultKvPreset = "kivi-m";

// NAME[:FIELD=VALUE]...: a preset with fields changed:
// "kivi2:group-size=64:residual=32:sinks=4:key-bits=4:value-bits=2". Throws Error{kInvalidArgument} listing the presets
// or fields.
KvConfig parse_kv_config(std::string_view text);
// The same for one field, as the command line's options set it: field "group-size", value "64".
void set_kv_field(KvConfig& config, std::string_view field, std::string_view value);

}  // namespace kivi
