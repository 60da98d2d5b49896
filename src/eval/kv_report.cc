#include "eval/kv_report.h"

#include <nlohmann/json.hpp>

namespace kivi {

std::vector<KvReport> report_kv(const KvShape& shape, std::span<const KvConfig> configs, int64_t context) {
  std::vector<KvReport> reports;
  for (const KvConfig& config : configs) {
    config.validate(shape);
    const double bits = config.layout(shape).bits_per_element();
    reports.push_back({.kv = config.name,
                       .bits_per_element = bits,
                       .bytes_per_token = bits / 8 * static_cast<double>(shape.elements_per_token()),
                       .at_context = memory_of(shape, config, context)});
  }
  return reports;
}

nlohmann::ordered_json to_json(std::span<const KvReport> reports) {
  auto list = nlohmann::ordered_json::array();
  for (const KvReport& r : reports) {
    list.push_back({{"kv", r.kv},
                    {"bytes_per_token", r.bytes_per_token},
                    {"bytes_at_context", r.at_context.allocated_bytes()},
                    {"bits_per_element", r.bits_per_element},
                    {"effective_bits_per_element", r.at_context.effective_bits_per_element()},
                    {"packed_bytes_at_context", r.at_context.packed_bytes()},
                    {"window_bytes_at_context", r.at_context.window_bytes},
                    {"slack_bytes_at_context", r.at_context.slack_bytes},
                    {"dropped_tokens_at_context", r.at_context.dropped_tokens},
                    {"dropped_bytes_at_context", r.at_context.dropped_bytes}});
  }
  return list;
}

}  // namespace kivi
