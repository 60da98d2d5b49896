#include "backend/cuda/device/graph.h"

namespace kivi::cuda {
namespace {

using CapturedGraph = std::unique_ptr<std::remove_pointer_t<cudaGraph_t>, decltype(&cudaGraphDestroy)>;

// Relaxed: a kernel that runs here for the first time is loaded, which the stricter modes may refuse. What must not be
// captured the backend refuses itself.
CapturedGraph capture(cudaStream_t stream, const std::function<void()>& run) {
  check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeRelaxed), "recording");
  cudaGraph_t graph = nullptr;
  try {
    run();
  } catch (...) {
    cudaStreamEndCapture(stream, &graph);  // also of a capture that broke
    if (graph != nullptr) cudaGraphDestroy(graph);
    cudaGetLastError();
    throw;
  }
  check(cudaStreamEndCapture(stream, &graph), "recording");
  return {graph, &cudaGraphDestroy};
}

}  // namespace

Graph::Graph(const Stream& stream, const std::function<void()>& run) {
  const CapturedGraph graph = capture(stream.enter(), run);
  size_t n_nodes = 0;
  check(cudaGraphGetNodes(graph.get(), nullptr, &n_nodes), "preparing a recording");
  n_launches_ = static_cast<int64_t>(n_nodes);
  check(cudaGraphInstantiate(&executable_, graph.get(), 0), "preparing a recording");
  check(cudaGraphUpload(executable_, stream.enter()), "preparing a recording");  // so that no launch has to
}

Graph::~Graph() {
  cudaGraphExecDestroy(executable_);
}

void Graph::launch(const Stream& stream) const {
  check(cudaGraphLaunch(executable_, stream.enter()), "replaying a recording");
}

}  // namespace kivi::cuda
