// A device for the tests of what runs on any device. It computes with the reference, but behaves as a GPU does: its
// activations have 16 bits, operations run only when the host waits for them, steps can be recorded, memory has an end.
// What a GPU cannot do, or would do wrong without a word, is an error here: copies and allocations inside a recording,
// arguments of the wrong type, attention that was not planned.
#pragma once

#include <cstring>
#include <map>
#include <utility>

#include "backend/backend.h"
#include "backend/tensor.h"
#include "core/error.h"

namespace kivi {

struct FakeDeviceOptions {
  DType activation = DType::kF16;
  bool records = true;
  size_t memory_bytes = 0;  // 0: it does not say
};

class FakeDevice : public Backend {
 public:
  struct Counts {
    int64_t copies_to_device = 0;
    int64_t bytes_to_device = 0;
    int64_t bytes_to_host = 0;
    int64_t recordings = 0;
    int64_t replays = 0;
    int64_t replays_ahead = 0;  // while a readback had not been waited for
  };

  explicit FakeDevice(const FakeDeviceOptions& options = {}) : options_(options) {}
  const Counts& counts() const { return counts_; }

  BackendInfo info() const override { return {"fake", "for tests", 1}; }
  DType activation_dtype() const override { return options_.activation; }

  std::unique_ptr<Buffer> allocate(size_t size_bytes) override {
    require(recording_ == nullptr, "an allocation inside a recording");
    if (options_.memory_bytes != 0 && size_bytes > free_bytes()) {
      fail(ErrorCode::kOutOfMemory, "{} bytes of memory: {} are free", size_bytes, free_bytes());
    }
    return std::make_unique<FakeBuffer>(*this, inner_->allocate(size_bytes));
  }
  size_t free_bytes() override { return options_.memory_bytes - (options_.memory_bytes == 0 ? 0 : allocated_); }

  void copy_to_device(void* device, const void* host, size_t size_bytes) override {
    require(recording_ == nullptr, "a copy to the device inside a recording");
    ++counts_.copies_to_device;
    counts_.bytes_to_device += static_cast<int64_t>(size_bytes);
    const auto* bytes = static_cast<const std::byte*>(host);
    enqueue([device, copy = std::vector<std::byte>(bytes, bytes + size_bytes)] {
      std::memcpy(device, copy.data(), copy.size());
    });
  }
  void copy_to_host(void* host, const void* device, size_t size_bytes) override {
    require(recording_ == nullptr, "a copy to the host inside a recording");
    counts_.bytes_to_host += static_cast<int64_t>(size_bytes);
    synchronize();
    std::memcpy(host, device, size_bytes);
  }
  std::unique_ptr<Readback> make_readback(size_t size_bytes) override {
    require(recording_ == nullptr, "an allocation inside a recording");
    return std::make_unique<FakeReadback>(*this, size_bytes);
  }
  void copy(void* to, const void* from, size_t size_bytes) override {
    require(recording_ == nullptr, "a copy inside a recording");
    enqueue([=] { std::memcpy(to, from, size_bytes); });
  }
  void synchronize() override {
    for (const auto& operation : std::exchange(queue_, {})) operation();
  }

  std::unique_ptr<Recording> record(const std::function<void()>& run) override {
    if (!options_.records) return nullptr;
    ++counts_.recordings;
    auto recording = std::make_unique<FakeRecording>();
    recording_ = &recording->operations;
    const std::shared_ptr<void> end(nullptr, [this](void*) { recording_ = nullptr; });  // should run() throw
    run();
    return recording;
  }
  void replay(const Recording& recording) override {
    ++counts_.replays;
    if (n_readbacks_ > 0) ++counts_.replays_ahead;
    const auto& operations = dynamic_cast<const FakeRecording&>(recording).operations;
    queue_.insert(queue_.end(), operations.begin(), operations.end());
  }

  std::unique_ptr<Weight> load_weight(std::span<const WeightView> parts) override { return inner_->load_weight(parts); }
  std::unique_ptr<Weight> random_weight(int64_t rows, int64_t cols, float scale, uint64_t seed) override {
    return inner_->random_weight(rows, cols, scale, seed);
  }

  void embed(const EmbedArgs& args) override {
    enqueue([this, args] { inner_->embed(args); });
  }
  void norm(const NormArgs& args) override {
    for (const AnyView& view : {args.x, args.out}) {
      if (view.dtype != DType::kF32) require_activation(view);
    }
    require(!args.accumulate || args.out.dtype == DType::kF32, "16-bit sums");
    enqueue([this, args] {
      NormArgs wide = args;
      const Wide x(args.x, false);
      const Wide out(args.out, true);
      wide.x = x.view();
      wide.out = out.view();
      inner_->norm(wide);
    });
  }
  void linear(const LinearArgs& args) override {
    require_activation(args.x);
    if (args.out.dtype != DType::kF32) require_activation(args.out);
    require(!args.accumulate || args.out.dtype == DType::kF32, "16-bit sums");
    enqueue([this, args] {
      const Wide x(args.x, false);
      const Wide out(args.out, true);
      inner_->linear({x.view(), args.weight, args.bias, out.view(), args.accumulate});
    });
  }
  void rope(const RopeArgs& args) override {
    require_activation(args.x);
    enqueue([this, args] {
      const Wide x(args.x, true);
      inner_->rope({x.view(), args.positions, args.inverse_frequency, args.pairing, args.scale});
    });
  }
  void hadamard(const HadamardArgs& args) override {
    require_activation(args.x);
    enqueue([this, args] {
      const Wide x(args.x, true);
      inner_->hadamard({x.view(), args.block});
    });
  }
  void gate(const GateArgs& args) override {
    for (const AnyView& view : {args.gate, args.out}) require_activation(view);
    if (!args.up.empty()) require_activation(args.up);
    enqueue([this, args] {
      const Wide gate(args.gate, false);
      const Wide up(args.up, false);
      const Wide out(args.out, true);
      inner_->gate({gate.view(), up.view(), args.activation, out.view()});
    });
  }
  void soft_cap(const SoftCapArgs& args) override {
    enqueue([this, args] { inner_->soft_cap(args); });
  }
  void gather(const GatherArgs& args) override {
    enqueue([this, args] { inner_->gather(args); });
  }
  void argmax(const ArgmaxArgs& args) override {
    enqueue([this, args] { inner_->argmax(args); });
  }
  void convert(const ConvertArgs& /*args*/) override {
    fail(ErrorCode::kInternal, "fake device: keys and values have the type of the cache already");
  }
  void sum_words(const SumWordsArgs& args) override {
    enqueue([this, args] { inner_->sum_words(args); });
  }
  void plan_attend(const PlanAttendArgs& args) override {
    enqueue([this, args] { plans_[args.cache.group] = args; });
  }
  void attend(const AttendArgs& args) override {
    for (const AnyView& view : {args.q, args.out, args.new_keys, args.new_values}) require_activation(view);
    enqueue([this, args] {
      const PlanAttendArgs& plan = plans_[args.cache.group];
      require(plan.seq_begin.data == args.seq_begin.data && plan.seq_begin.shape[0] == args.seq_begin.shape[0] &&
                  plan.n_rows == args.q.shape[0] && plan.n_heads == args.q.shape[1] &&
                  plan.cache.packed_table.data == args.cache.packed_table.data &&
                  plan.cache.key_policy == args.cache.key_policy,
              "attention that was not planned");
      AttendArgs wide = args;
      const Wide q(args.q, false);
      const Wide out(args.out, true);
      wide.q = q.view();
      wide.out = out.view();
      inner_->attend(wide);
    });
  }
  void store_kv(const StoreKvArgs& args) override {
    enqueue([this, args] { inner_->store_kv(args); });
  }

 private:
  using Operations = std::vector<std::function<void()>>;
  struct FakeRecording : Recording {
    Operations operations;
    int64_t n_launches() const override { return std::ssize(operations); }
  };

  // Freed when nothing that was asked for can use it any more.
  class FakeBuffer : public Buffer {
   public:
    FakeBuffer(FakeDevice& device, std::unique_ptr<Buffer> buffer)
        : Buffer(buffer->data(), buffer->size_bytes()), device_(device), buffer_(std::move(buffer)) {
      device_.allocated_ += size_;
    }
    FakeBuffer(const FakeBuffer&) = delete;
    FakeBuffer& operator=(const FakeBuffer&) = delete;
    ~FakeBuffer() override {
      device_.synchronize();
      device_.allocated_ -= size_;
    }

   private:
    FakeDevice& device_;
    std::unique_ptr<Buffer> buffer_;
  };

  // What is asked of the device between start() and wait() does not change what came.
  class FakeReadback : public Readback {
   public:
    FakeReadback(FakeDevice& device, size_t size_bytes) : device_(device), bytes_(size_bytes) {}
    FakeReadback(const FakeReadback&) = delete;
    FakeReadback& operator=(const FakeReadback&) = delete;
    ~FakeReadback() override { wait(); }
    void start(const void* device, size_t size_bytes) override {
      require(device_.recording_ == nullptr && size_bytes <= bytes_.size(), "a readback in a recording or too long");
      device_.counts_.bytes_to_host += static_cast<int64_t>(size_bytes);
      if (!std::exchange(is_started_, true)) ++device_.n_readbacks_;
      device_.enqueue([this, device, size_bytes] { std::memcpy(bytes_.data(), device, size_bytes); });
    }
    const std::byte* wait() override {
      if (std::exchange(is_started_, false)) --device_.n_readbacks_;
      device_.synchronize();
      return bytes_.data();
    }

   private:
    FakeDevice& device_;
    std::vector<std::byte> bytes_;
    bool is_started_ = false;
  };

  // An f32 copy of 16-bit activations, written back at the end if the operation writes them.
  class Wide {
   public:
    Wide(const AnyView& original, bool is_written) : original_(original), view_(original), is_written_(is_written) {
      if (original.dtype == DType::kF32) return;
      int64_t step = 1;
      for (int d = original.rank; d-- > 0; step *= original.shape[d]) view_.stride[d] = step;
      values_.resize(static_cast<size_t>(step));
      view_.data = values_.data();
      view_.dtype = DType::kF32;
      for_each([](uint16_t& bits, float& value, bool is_half) {
        value = is_half ? to_float(Half{bits}) : to_float(BFloat16{bits});
      });
    }
    Wide(const Wide&) = delete;
    Wide& operator=(const Wide&) = delete;
    ~Wide() {
      if (values_.empty() || !is_written_) return;
      for_each([](uint16_t& bits, float& value, bool is_half) {
        bits = is_half ? to_half(value).bits : to_bfloat16(value).bits;
      });
    }
    const AnyView& view() const { return view_; }

   private:
    template <typename Visit>
    void for_each(Visit visit) {
      const int64_t depth = original_.rank == 3 ? original_.shape[2] : 1;
      for (int64_t i = 0; i < original_.shape[0] * original_.shape[1] * depth; ++i) {
        const int64_t n = i / depth / original_.shape[1];
        const int64_t offset =
            n * original_.stride[0] + i / depth % original_.shape[1] * original_.stride[1] + i % depth;
        visit(static_cast<uint16_t*>(original_.data)[offset], values_[static_cast<size_t>(i)],
              original_.dtype == DType::kF16);
      }
    }

    AnyView original_;
    AnyView view_;
    bool is_written_;
    std::vector<float> values_;
  };

  static void require(bool good, const char* otherwise) {
    if (!good) fail(ErrorCode::kInternal, "fake device: {}", otherwise);
  }
  void require_activation(const AnyView& view) const {
    require(view.dtype == options_.activation, "an argument that does not have the type of activations");
  }
  void enqueue(std::function<void()> operation) {
    (recording_ != nullptr ? *recording_ : queue_).push_back(std::move(operation));
  }

  FakeDeviceOptions options_;
  std::unique_ptr<Backend> inner_ = make_backend({.device = "reference", .n_threads = 1});
  Operations queue_;
  Operations* recording_ = nullptr;
  std::map<int32_t, PlanAttendArgs> plans_;  // by group of layers
  size_t allocated_ = 0;
  int n_readbacks_ = 0;  // that come
  Counts counts_;
};

}  // namespace kivi
