// What one layer's keys and values look like on one chunk of text, and what quantising them costs there.
#pragma once

#include <nlohmann/json.hpp>
#include <vector>

#include "study/capture.h"

namespace kivi {

struct LayerStudyOptions {
  int n_threads = 1;
  int64_t n_queries = 32;  // tokens whose attention is computed again for every setting
  int group_size = 32;
};

// Bit widths that are compared: those of 2, 3 and 4 that the packed format has.
std::vector<int> studied_bits();

// {"layer",
//  "sides": {"key_before_rope"|"key"|"value": {"channels": [mean magnitude; KV heads x channels],
//                                             "first_token": its norm over the median norm, mean over heads}},
//  "attention": {"sparsity", "mass_of_first": [[n, mass], ...]},      means over query heads and probed tokens
//  "errors": [{"side","axis","bits","reconstruction","score","output"}, ...]}   relative, means over heads
nlohmann::ordered_json study_layer(const LayerCapture& layer, const LayerStudyOptions& options);

// Magnitudes of one head: the largest in each of at most n_bins bins of tokens, for every channel.
// {"layer","head","side","tokens_per_bin","bins":[[channels], ...]}, for each side.
nlohmann::ordered_json magnitude_maps(const LayerCapture& layer, int64_t head, int64_t n_bins);

// To four digits: what is written many times need not be longer.
double rounded(double x);

}  // namespace kivi
