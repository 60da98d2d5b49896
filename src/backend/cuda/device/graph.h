// Operations recorded into a CUDA graph.
#pragma once

#include <functional>
#include <memory>

#include "backend/backend.h"
#include "backend/cuda/device/stream.h"

namespace kivi::cuda {

class Graph : public Recording {
 public:
  // Captures what `run` asks of the stream. Nothing runs.
  Graph(const Stream& stream, const std::function<void()>& run);
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;
  ~Graph() override;

  void launch(const Stream& stream) const;
  int64_t n_launches() const override { return n_launches_; }

 private:
  cudaGraphExec_t executable_ = nullptr;
  int64_t n_launches_ = 0;
};

}  // namespace kivi::cuda
