// What a device does for a model: about a dozen coarse operations, each on one struct of views. Views point into memory
// of the backend; operations are asynchronous on it where the device is, in the order of the calls. Results do not
// depend on what else is in a batch: every row is computed as if it were alone. (On a GPU a matrix product may be
// summed in another order when it has another number of rows.)
//
// Letters of shapes: N rows (tokens of all sequences of a step, one sequence after the other), B sequences, H query
// heads, K KV heads, D head_dim, C channels. "act" is the backend's activation dtype: what goes into matrix products
// and attention (CPU and reference: f32). The residual stream is f32 everywhere.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "core/tensor_view.h"
#include "format/kv_view.h"
#include "weights/format.h"

namespace kivi {

struct BackendInfo {
  std::string device;  // "cpu:avx512", as make_backend takes it
  std::string detail;  // one line for people: processor or GPU, threads, memory
  int n_threads = 1;
};

// Memory of a backend. Owns it; zeroed; aligned to 64 bytes at least. Its end waits for operations that use it.
class Buffer {
 public:
  virtual ~Buffer() = default;
  std::byte* data() const { return data_; }
  size_t size_bytes() const { return size_; }

 protected:
  Buffer(std::byte* data, size_t size) : data_(data), size_(size) {}
  std::byte* data_;
  size_t size_;
};

// A matrix [rows, cols] as the backend wants it. y = x W^T takes x [N, cols] to y [N, rows].
class Weight {
 public:
  virtual ~Weight() = default;
  int64_t rows() const { return rows_; }
  int64_t cols() const { return cols_; }

 protected:
  Weight(int64_t rows, int64_t cols) : rows_(rows), cols_(cols) {}
  int64_t rows_;
  int64_t cols_;
};

// out[n, :] = scale * row tokens[n] of the table.
struct EmbedArgs {
  const Weight* table = nullptr;  // [vocabulary, C]
  AnyView tokens;                 // [N] i32; each in [0, vocabulary)
  AnyView out;                    // [N, C] f32
  float scale = 1.0F;
};

enum class NormKind : uint8_t {
  kRms,    // m = 0
  kLayer,  // m = mean(x)
};

// out = (x - m) / sqrt(mean((x - m)^2) + epsilon) * weight + bias over the last dimension, or out += that with
// accumulate: the norm of what goes into a matrix, of each head by itself, or of what is added to the residual stream.
struct NormArgs {
  AnyView x;       // [N, C] f32, or [N, heads, C] act
  AnyView weight;  // [C] f32, or [heads, C]
  AnyView bias{};  // as weight, or empty
  NormKind kind = NormKind::kRms;
  float epsilon = 1e-5F;
  AnyView out;              // as x, but act; may be x where it has its dtype
  bool accumulate = false;  // then x and out are [N, C] f32
};

// out = x W^T + bias, or out += x W^T + bias with accumulate (a residual connection).
struct LinearArgs {
  AnyView x;  // [N, cols] act
  const Weight* weight = nullptr;
  AnyView bias;             // [rows] f32, or empty
  AnyView out;              // [N, rows] act or f32; not x
  bool accumulate = false;  // then out is f32
};

enum class RopePairing : uint8_t {
  kInterleaved,  // channels (2i, 2i + 1)
  kHalfSplit,    // channels (i, i + n/2)
};

// Rotates the first 2 * len(inverse_frequency) channels of every head, in place, pair i by positions[n] * f[i] radians,
// and scales them.
struct RopeArgs {
  AnyView x;                  // [N, heads, D] act
  AnyView positions;          // [N] i32
  AnyView inverse_frequency;  // [rotary channels / 2] f32
  RopePairing pairing = RopePairing::kHalfSplit;
  float scale = 1.0F;
};

// Every `block` channels of a head become their orthonormal Walsh-Hadamard transform, in place; twice is not at all.
// Numbers that few channels had are then spread over all: what is to be quantised with one scale.
struct HadamardArgs {
  AnyView x;      // [N, heads, D] act
  int block = 0;  // a power of two, 4 to 128, that divides D
};

enum class Activation : uint8_t {
  kSilu,      // x / (1 + exp(-x))
  kGelu,      // x times the normal distribution's share below x
  kGeluTanh,  // the same, by its approximation with tanh
};

// out = activation(gate) * up, or activation(gate) without `up`.
struct GateArgs {
  AnyView gate;  // [N, C] act
  AnyView up;    // [N, C] act, or empty
  Activation activation = Activation::kSilu;
  AnyView out;  // [N, C] act; may be gate or up
};

// x = cap * tanh(x / cap).
struct SoftCapArgs {
  AnyView x;  // [N, C] f32
  float cap = 0.0F;
};

// out[i, :] = x[rows[i], :], bit for bit.
struct GatherArgs {
  AnyView x;     // [N, C] f32
  AnyView rows;  // [M] i32
  AnyView out;   // [M, C] f32
};

// out[n] = the column of the largest x[n, :]; of equal ones the first.
struct ArgmaxArgs {
  AnyView x;    // [N, C] f32
  AnyView out;  // [N] i32
};

// out = x in the dtype of out, rounded to nearest even; finite values beyond a 16-bit type's range become its largest,
// infinities and NaN stay.
struct ConvertArgs {
  AnyView x;    // [N, C]
  AnyView out;  // [N, C]
};

// out = the sum of all words of x, modulo 2^32. Nothing reads memory faster: what measurements compare with.
struct SumWordsArgs {
  AnyView x;    // [N] i32, dense
  AnyView out;  // [1] i32
};

// n_new[b] new tokens of each sequence attend to all stored tokens of their sequence (packed pages, window, sinks) and,
// causally, to the new tokens themselves in 16 bits: in a layer that slides, to those that it sees. Decoding is one new
// token, prefill an empty past, and everything between is the same operation. (KIVI, Algorithm 1: prefill step 1;
// decoding steps 1 and 4. Attend first, then store.) A sequence may have no rows, as padding of a recorded step has;
// rows that belong to no sequence are left alone.
struct AttendArgs {
  AnyView q;                  // [N, H, D] act; H a multiple of K
  AnyView new_keys;           // [N, K, D] 16 bits: cache.window_dtype
  AnyView new_values;         // [N, K, D]
  AnyView seq_begin;          // [B + 1] i32: rows seq_begin[b] .. seq_begin[b + 1] - 1 are sequence b
  format::KvBatchView cache;  // before this step
  float softmax_scale = 0.0F;
  float score_cap = 0.0F;  // above 0: a scaled score s becomes score_cap * tanh(s / score_cap)
  AnyView out;             // [N, H, D] act; not q
};

// Stores the new tokens, but for those that have left a layer which slides already: those that the window policies put
// into packed pages are quantised there, together with older tokens that now leave the window; the rest goes into the
// window. (KIVI, Algorithm 1: prefill steps 2 and 3; decoding steps 2 and 3.) The tables of `cache` must already have
// pages for what is stored.
struct StoreKvArgs {
  AnyView new_keys;    // [N, K, D] 16 bits: cache.window_dtype
  AnyView new_values;  // [N, K, D]
  AnyView seq_begin;   // [B + 1] i32
  format::KvBatchView cache;
};

// What the attend calls of one step and one group of layers (cache.group) have in common: everything but the layer.
// seq_begin and the lengths in `cache` are read when the operation runs, so that a recording serves later steps.
struct PlanAttendArgs {
  AnyView seq_begin;          // [B + 1] i32
  format::KvBatchView cache;  // of any layer of the group
  int64_t n_rows = 0;         // N
  int64_t n_heads = 0;        // H
};

// Operations recorded once, to be run again on the same memory with other contents: a CUDA graph.
class Recording {
 public:
  virtual ~Recording() = default;
  virtual int64_t n_launches() const { return 0; }  // kernels that it runs; 0 if it does not know
};

// Memory of the host that the device copies to while the host goes on. Must not outlive its backend.
class Readback {
 public:
  virtual ~Readback() = default;
  // In the order of operations; at most as many bytes as it was made for.
  virtual void start(const void* device, size_t size_bytes) = 0;
  // What was started last, once it is there; valid until the next start.
  virtual const std::byte* wait() = 0;
};

class Backend {
 public:
  virtual ~Backend() = default;

  virtual BackendInfo info() const = 0;
  virtual DType activation_dtype() const = 0;
  // The order of the codes in the pages that attend and store_kv take.
  virtual format::CodeOrder code_order() const { return format::CodeOrder::kLinear; }

  // Throws Error{kOutOfMemory} saying what was asked. Memory of the CPU is committed as it is first written.
  virtual std::unique_ptr<Buffer> allocate(size_t size_bytes) = 0;
  // In the order of operations; `host` is free for other use when the call returns.
  virtual void copy_to_device(void* device, const void* host, size_t size_bytes) = 0;
  virtual void copy_to_host(void* host, const void* device, size_t size_bytes) = 0;  // waits for what was asked before
  virtual std::unique_ptr<Readback> make_readback(size_t size_bytes);
  // Within the backend's memory; the two must not overlap.
  virtual void copy(void* to, const void* from, size_t size_bytes) = 0;
  virtual void synchronize() = 0;
  // Bytes of memory that allocate() can still hand out; 0 if there is no use in asking (the CPU commits what is
  // touched).
  virtual size_t free_bytes() { return 0; }

  // Records the operations that `run` calls, without running them. Null on a device that has nothing to gain: the
  // caller then calls them every time. They may not allocate, load or copy.
  virtual std::unique_ptr<Recording> record(const std::function<void()>& /*run*/) { return nullptr; }
  virtual void replay(const Recording& /*recording*/) {}

  // One matrix with the rows of all parts, one after the other (q, k and v in one product). The parts have the same
  // number of columns and point into a file mapping that outlives the result; backends of the CPU read it in place.
  virtual std::unique_ptr<Weight> load_weight(std::span<const WeightView> parts) = 0;
  std::unique_ptr<Weight> load_weight(const WeightView& weight) { return load_weight({&weight, 1}); }
  // A 16-bit matrix of numbers drawn evenly from -scale to scale, for measurements without a model file. Throws
  // Error{kUnsupported} where there is none.
  virtual std::unique_ptr<Weight> random_weight(int64_t rows, int64_t cols, float scale, uint64_t seed);

  // Throw Error{kInternal} on shapes that contradict each other, Error{kUnsupported} on a case without a kernel.
  virtual void embed(const EmbedArgs& args) = 0;
  virtual void norm(const NormArgs& args) = 0;
  virtual void linear(const LinearArgs& args) = 0;
  virtual void rope(const RopeArgs& args) = 0;
  virtual void hadamard(const HadamardArgs& args) = 0;
  virtual void gate(const GateArgs& args) = 0;
  virtual void soft_cap(const SoftCapArgs& args) = 0;
  virtual void gather(const GatherArgs& args) = 0;
  virtual void argmax(const ArgmaxArgs& args) = 0;
  virtual void convert(const ConvertArgs& args) = 0;
  virtual void sum_words(const SumWordsArgs& args);  // Error{kUnsupported} where there is none
  // For each group of layers, before the attend calls of a step, in the order of operations. For devices that share
  // work out there.
  virtual void plan_attend(const PlanAttendArgs& /*args*/) {}
  virtual void attend(const AttendArgs& args) = 0;
  virtual void store_kv(const StoreKvArgs& args) = 0;
};

struct BackendOptions {
  // "cpu", "cpu:avx512", "cpu:avx2", "cpu:portable", "reference", "cuda", "cuda:N"; empty: the best that is there.
  std::string device;
  std::optional<int> n_threads;  // default: physical cores
  // Of weights, activations and the cache's window on a GPU: f16 (default) or bf16. Devices of the host compute in f32,
  // with a window in f16.
  std::optional<DType> dtype{};
  // Of a GPU: a cudaStream_t of the caller's that all operations are asked of. It must outlive the backend. Null: one
  // of the backend's own.
  void* stream = nullptr;
};

// Throws Error{kUnsupported} listing what is there when the device asked for is not.
std::unique_ptr<Backend> make_backend(const BackendOptions& options);

// The devices that make_backend takes on this machine with this build.
std::vector<std::string> available_devices();

}  // namespace kivi
