// How long a device takes for operations that follow each other without a gap.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "backend/backend.h"

namespace kivi {

double median(std::vector<double> values);

class CallTimer {
 public:
  // call(i) asks the backend for operations that may be repeated; i goes round in [0, n_round), so that what they read
  // is not what the last ones have left in a cache. They are recorded where the device records.
  CallTimer(Backend& backend, int64_t n_round, std::function<void(int64_t)> call, double sample_seconds);

  // Seconds of a call: the mean of as many as fill sample_seconds, at least a round.
  double sample() const;
  double median_of(int n_samples) const;

 private:
  void run() const;

  Backend* backend_;
  int64_t n_round_;
  std::function<void(int64_t)> call_;
  int64_t n_calls_;     // of a run
  int64_t n_runs_ = 1;  // of a sample
  std::unique_ptr<Recording> recording_;
};

}  // namespace kivi
