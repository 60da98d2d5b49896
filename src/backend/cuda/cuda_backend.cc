#include "backend/cuda/cuda_backend.h"

#include "backend/cuda/device/graph.h"
#include "backend/cuda/kernels/attend_chunk.h"
#include "backend/cuda/kernels/attend_decode.h"
#include "backend/cuda/kernels/elementwise.h"
#include "backend/cuda/kernels/random.h"
#include "backend/cuda/kernels/row_reduce.h"
#include "backend/cuda/kernels/store.h"
#include "backend/cuda/kernels/sum_words.h"
#include "backend/cuda/linear.h"
#include "backend/cuda/weight.h"
#include "core/error.h"

namespace kivi::cuda {
namespace {

std::string describe(int device) {
  cudaDeviceProp properties{};
  check(cudaGetDeviceProperties(&properties, device), "asking for the GPU's properties");
  int driver = 0;
  check(cudaDriverGetVersion(&driver), "asking for the driver's version");
  return fmt::format("{}, {:.1f} GiB, {} multiprocessors, driver for CUDA {}.{}", properties.name,
                     static_cast<double>(properties.totalGlobalMem) / (1 << 30), properties.multiProcessorCount,
                     driver / 1000, driver % 1000 / 10);
}

class CudaBackend : public Backend {
 public:
  CudaBackend(int device, DType dtype, cudaStream_t stream)
      : dtype_(dtype), stream_(device, stream), staging_(stream_), linear_(stream_), decode_attention_(stream_) {}

  BackendInfo info() const override {
    return {fmt::format("cuda:{}", stream_.device()), fmt::format("{}, {}", describe(stream_.device()), name(dtype_)),
            1};
  }
  DType activation_dtype() const override { return dtype_; }
  format::CodeOrder code_order() const override { return format::CodeOrder::kFragment; }

  std::unique_ptr<Buffer> allocate(size_t size_bytes) override {
    refuse_recording("allocate");
    return std::make_unique<DeviceBuffer>(size_bytes, stream_);
  }
  void copy_to_device(void* device, const void* host, size_t size_bytes) override {
    refuse_recording("copy_to_device");
    staging_.upload(device, host, size_bytes);
  }
  void copy_to_host(void* host, const void* device, size_t size_bytes) override {
    refuse_recording("copy_to_host");
    staging_.download(host, device, size_bytes);
  }
  std::unique_ptr<Readback> make_readback(size_t size_bytes) override {
    refuse_recording("make_readback");
    return std::make_unique<PinnedReadback>(stream_, size_bytes);
  }
  void copy(void* to, const void* from, size_t size_bytes) override {
    refuse_recording("copy");
    check(cudaMemcpyAsync(to, from, size_bytes, cudaMemcpyDeviceToDevice, stream_.enter()), "copying on the device");
  }
  void synchronize() override {
    refuse_recording("synchronize");
    stream_.synchronize();
  }
  size_t free_bytes() override { return free_memory(stream_); }

  std::unique_ptr<Recording> record(const std::function<void()>& run) override {
    refuse_recording("record");
    return std::make_unique<Graph>(stream_, run);
  }
  void replay(const Recording& recording) override { dynamic_cast<const Graph&>(recording).launch(stream_); }

  std::unique_ptr<Weight> load_weight(std::span<const WeightView> parts) override {
    refuse_recording("load_weight");
    return load_matrix(parts, dtype_, stream_, staging_);
  }
  std::unique_ptr<Weight> random_weight(int64_t rows, int64_t cols, float scale, uint64_t seed) override {
    refuse_recording("random_weight");
    auto matrix = std::make_unique<Matrix>(rows, cols, dtype_, stream_);
    fill_random(matrix->data(), dtype_, rows * cols, scale, seed, stream_.enter());
    return matrix;
  }

  void embed(const EmbedArgs& args) override { cuda::embed(args, stream_.enter()); }
  void norm(const NormArgs& args) override { cuda::norm(args, stream_.enter()); }
  void linear(const LinearArgs& args) override { linear_.run(args); }
  void rope(const RopeArgs& args) override { cuda::rope(args, stream_.enter()); }
  void hadamard(const HadamardArgs& args) override { cuda::hadamard(args, stream_.enter()); }
  void gate(const GateArgs& args) override { cuda::gate(args, stream_.enter()); }
  void soft_cap(const SoftCapArgs& args) override { cuda::soft_cap(args, stream_.enter()); }
  void gather(const GatherArgs& args) override { cuda::gather(args, stream_.enter()); }
  void argmax(const ArgmaxArgs& args) override { cuda::argmax(args, stream_.enter()); }
  void convert(const ConvertArgs& args) override { cuda::convert(args, stream_.enter()); }
  void sum_words(const SumWordsArgs& args) override { cuda::sum_words(args, stream_.device(), stream_.enter()); }
  void plan_attend(const PlanAttendArgs& args) override { decode_attention_.plan(args, stream_.enter()); }
  void attend(const AttendArgs& args) override {
    // As many rows as sequences: each has one (or none, as padding has), for no step is without a row of each sequence.
    const int64_t n_sequences = args.seq_begin.shape[0] - 1;
    const bool decodes_only = args.q.shape[0] == n_sequences;
    if (!decodes_only) attend_chunk(args, stream_.enter());
    if (decodes_only || n_sequences > 1) decode_attention_.run(args, stream_.enter());
  }
  void store_kv(const StoreKvArgs& args) override { cuda::store_kv(args, stream_.enter()); }

 private:
  void refuse_recording(std::string_view operation) const {
    cudaStreamCaptureStatus status{};
    check(cudaStreamIsCapturing(stream_.enter(), &status), operation);
    if (status == cudaStreamCaptureStatusNone) return;
    fail(ErrorCode::kInternal, "{}: called while operations are being recorded", operation);
  }

  DType dtype_;
  Stream stream_;
  Staging staging_;
  Linear linear_;
  DecodeAttention decode_attention_;
};

}  // namespace

std::unique_ptr<Backend> make_backend(int device, DType dtype, cudaStream_t stream) {
  return std::make_unique<CudaBackend>(device, dtype, stream);
}

}  // namespace kivi::cuda
