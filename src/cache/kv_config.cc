#include "cache/kv_config.h"

#include <array>
#include <charconv>
#include <numeric>

#include "core/error.h"

namespace kivi {
namespace {

using format::kGroupUnit;
using format::kPageTokens;

struct Field {
  std::string_view name;
  int KvConfig::*member;
};
constexpr std::array<Field, 6> kFields = {{{"group-size", &KvConfig::group_size},
                                           {"residual", &KvConfig::residual_length},
                                           {"sinks", &KvConfig::sinks},
                                           {"key-bits", &KvConfig::key_bits},
                                           {"value-bits", &KvConfig::value_bits},
                                           {"param-bits", &KvConfig::param_bits}}};

void check_bits(std::string_view what, int bits) {
  if (bits != KvConfig::kUnpackedBits && !format::is_packed_width(bits)) {
    fail(ErrorCode::kInvalidArgument, "{} {}: must be 2, 3, 4, 8 or 16 (16 is not quantised)", what, bits);
  }
}

}  // namespace

std::span<const KvConfig> kv_presets() {
  static const std::array<KvConfig, 6> presets = {
      {{.name = "f16"},
       {.name = "kivi4", .key_bits = 4, .value_bits = 4},
       {.name = "kivi2", .key_bits = 2, .value_bits = 2},
       {.name = "kivi-l", .key_bits = 4, .value_bits = 3, .group_size = 128, .sinks = 4, .param_bits = 8},
       {.name = "kivi-m", .key_bits = 4, .value_bits = 2, .group_size = 128, .sinks = 4, .param_bits = 8},
       {.name = "kivi-s", .key_bits = 3, .value_bits = 2, .group_size = 128, .sinks = 4, .param_bits = 8}}};
  return presets;
}

std::string kv_preset_names() {
  std::string names;
  for (const KvConfig& known : kv_presets()) names += (names.empty() ? "" : ", ") + known.name;
  return names;
}

format::WindowPolicy KvConfig::key_policy(int64_t sliding_window) const {
  format::WindowPolicy policy{.sinks = sinks, .sliding_window = static_cast<int32_t>(sliding_window)};
  if (key_bits == kUnpackedBits) return policy;
  policy.keep = 0;
  policy.flush = residual_length == 0 ? group_size : residual_length;
  return policy;
}

format::WindowPolicy KvConfig::value_policy(int64_t sliding_window) const {
  format::WindowPolicy policy{.sinks = sinks, .sliding_window = static_cast<int32_t>(sliding_window)};
  if (value_bits != kUnpackedBits) policy.keep = residual_length;
  return policy;
}

format::PageLayout KvConfig::layout(const KvShape& shape) const {
  return {.n_kv_heads = shape.n_kv_heads,
          .head_dim = shape.head_dim,
          .key_bits = key_bits == kUnpackedBits ? 0 : key_bits,
          .value_bits = value_bits == kUnpackedBits ? 0 : value_bits,
          .key_group = group_size,
          // A head narrower than G, or no multiple of it, takes the widest group that divides both.
          .value_group = std::gcd(group_size, shape.head_dim),
          .params = param_bits == 8 ? format::ParamFormat::kByte : format::ParamFormat::kHalf};
}

void KvConfig::validate(const KvShape& shape) const {
  check_bits("key-bits", key_bits);
  check_bits("value-bits", value_bits);
  if (shape.sliding_window < 0 || shape.sliding_window > format::WindowPolicy::kKeepAll) {
    fail(ErrorCode::kInvalidArgument, "sliding window {}: must be 0 to {} tokens", shape.sliding_window,
         format::WindowPolicy::kKeepAll);
  }
  if (!shape.slides.empty() && std::ssize(shape.slides) != shape.n_layers) {
    fail(ErrorCode::kInternal, "{} layers, of which {} slide or do not", shape.n_layers, shape.slides.size());
  }
  if (sinks < 0 || sinks > 4096) fail(ErrorCode::kInvalidArgument, "sinks {}: must be 0 to 4096", sinks);
  if (!is_packed()) return;
  if (group_size < kGroupUnit || kPageTokens % group_size != 0) {
    fail(ErrorCode::kInvalidArgument, "group-size {}: must divide the page of {} tokens; use 16, 32, 64 or 128",
         group_size, kPageTokens);
  }
  if (param_bits != 8 && param_bits != 16)
    fail(ErrorCode::kInvalidArgument, "param-bits {}: must be 8 or 16", param_bits);
  if (residual_length < 0 || residual_length > 65536) {
    fail(ErrorCode::kInvalidArgument, "residual {}: must be 0 to 65536", residual_length);
  }
  if (residual_length % group_size != 0) {
    fail(ErrorCode::kInvalidArgument, "group-size {}: must divide residual {}; use a residual of {} or {}", group_size,
         residual_length, residual_length / group_size * group_size, (residual_length / group_size + 1) * group_size);
  }
  if (shape.head_dim % kGroupUnit != 0) {
    fail(ErrorCode::kUnsupported, "head_dim {}: the packed format needs a multiple of {}; use --kv f16", shape.head_dim,
         kGroupUnit);
  }
}

void set_kv_field(KvConfig& config, std::string_view field, std::string_view value) {
  for (const Field& known : kFields) {
    if (known.name != field) continue;
    int number = 0;
    const auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), number);
    if (error != std::errc() || end != value.data() + value.size()) {
      fail(ErrorCode::kInvalidArgument, "{} '{}': must be a whole number", field, value);
    }
    config.*known.member = number;
    return;
  }
  fail(ErrorCode::kInvalidArgument,
       "KV setting '{}': unknown; use group-size, residual, sinks, key-bits, value-bits or param-bits", field);
}

KvConfig parse_kv_config(std::string_view text) {
  const std::string_view preset = text.substr(0, text.find(':'));
  for (const KvConfig& known : kv_presets()) {
    if (known.name != preset) continue;
    KvConfig config = known;
    config.name = text;
    std::string_view rest = text.substr(preset.size());
    while (!rest.empty()) {
      rest.remove_prefix(1);
      const std::string_view item = rest.substr(0, rest.find(':'));
      const size_t equals = item.find('=');
      if (equals == std::string_view::npos) {
        fail(ErrorCode::kInvalidArgument, "KV setting '{}': write FIELD=VALUE, as in {}:sinks=4", item, preset);
      }
      set_kv_field(config, item.substr(0, equals), item.substr(equals + 1));
      rest.remove_prefix(item.size());
    }
    return config;
  }
  fail(ErrorCode::kInvalidArgument, "KV preset '{}': unknown; use one of {}", preset, kv_preset_names());
}

}  // namespace kivi
