// What chunks of a text say of each layer together.
#pragma once

#include <nlohmann/json.hpp>
#include <span>

namespace kivi {

// `chunks` have "layers" as study_layer gives them, all of the same model.

// By layer: {"layer","attention": {"sparsity","mass_of_first"}, "sides": {"key_before_rope"|"key"|"value":
//   {"outlier_ratio","largest_outlier_ratio","outliers": [{"head","channel","ratio"}, ...],"stability","first_token"}}}
// A channel's ratio is its mean magnitude over the median of its head's channels; outlier_ratio is that of the largest
// channel, mean over heads, and `outliers` are the layer's largest. Stability: the largest sixteenth of each head's
// channels in one chunk, and the part of them that is among the largest in another; mean over pairs of chunks and
// heads; null for one chunk. The rest are means over chunks.
nlohmann::ordered_json summarise_layers(std::span<const nlohmann::ordered_json> chunks, int64_t head_dim);

// {"rows": [{"side","axis","bits","reconstruction","score","output","layers": [[reconstruction, score, output], ...]}],
//  "sparsity", "paper"}: means over layers and chunks, and by layer; beside them the figures of the paper's Table 2, as
// printed there.
nlohmann::ordered_json summarise_errors(std::span<const nlohmann::ordered_json> chunks);

}  // namespace kivi
