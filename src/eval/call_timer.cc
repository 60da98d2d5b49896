#include "eval/call_timer.h"

#include <algorithm>
#include <chrono>
#include <cmath>

namespace kivi {
namespace {

constexpr double kMostCalls = 2048;  // of a recording

int64_t divide_up(double a, double b) {
  return std::max<int64_t>(1, static_cast<int64_t>(std::ceil(a / b)));
}

}  // namespace

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const size_t middle = values.size() / 2;
  return values.size() % 2 == 1 ? values[middle] : 0.5 * (values[middle - 1] + values[middle]);
}

CallTimer::CallTimer(Backend& backend, int64_t n_round, std::function<void(int64_t)> call, double sample_seconds)
    : backend_(&backend), n_round_(n_round), call_(std::move(call)), n_calls_(n_round) {
  sample();  // the first time kernels are loaded and memory is touched
  const double wanted = sample_seconds / std::max(sample(), 1e-9);
  n_calls_ = n_round * divide_up(std::min(wanted, kMostCalls), static_cast<double>(n_round));
  n_runs_ = divide_up(wanted, static_cast<double>(n_calls_));
  recording_ = backend.record([this] { run(); });
  sample();
}

void CallTimer::run() const {
  if (recording_ != nullptr) return backend_->replay(*recording_);
  for (int64_t i = 0; i < n_calls_; ++i) call_(i % n_round_);
}

double CallTimer::sample() const {
  backend_->synchronize();
  const auto start = std::chrono::steady_clock::now();
  for (int64_t i = 0; i < n_runs_; ++i) run();
  backend_->synchronize();
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  return seconds.count() / static_cast<double>(n_runs_ * n_calls_);
}

double CallTimer::median_of(int n_samples) const {
  std::vector<double> samples;
  for (int i = 0; i < n_samples; ++i) samples.push_back(sample());
  return median(std::move(samples));
}

}  // namespace kivi
