// Arguments of the operations as typed views, their shapes checked: for backends that compute in f32. `typed` throws
// Error{kInternal} on a dtype, a rank or a shape that contradicts the operation.
#pragma once

#include <vector>

#include "backend/backend.h"

namespace kivi {

// A weight that is read where the file mapping has it, or in memory of its own.
class MappedWeight : public Weight {
 public:
  // The parts are as Backend::load_weight takes them; `memory` is what they point into if that is no file.
  explicit MappedWeight(std::span<const WeightView> parts, std::unique_ptr<Buffer> memory = nullptr);
  std::span<const WeightView> parts() const { return parts_; }

 private:
  std::vector<WeightView> parts_;
  std::unique_ptr<Buffer> memory_;
};

struct F32Embed {
  WeightView table;
  TensorView<const int32_t, 1> tokens;  // [N], each in the table
  TensorView<float, 2> out;             // [N, C]
  float scale = 1.0F;
};
struct F32Norm {                      // without heads there is one
  TensorView<const float, 3> x;       // [N, heads, C]
  TensorView<const float, 2> weight;  // [heads, C]
  TensorView<const float, 2> bias;    // [heads, C], or data nullptr
  NormKind kind;
  float epsilon;
  TensorView<float, 3> out;  // [N, heads, C]
  bool accumulate;
};
struct F32Linear {
  TensorView<const float, 2> x;  // [N, cols]
  WeightView weight;
  TensorView<const float, 1> bias;  // [rows], or data nullptr
  TensorView<float, 2> out;         // [N, rows]
  bool accumulate;
};
struct F32Rope {
  TensorView<float, 3> x;                        // [N, heads, D]
  TensorView<const int32_t, 1> positions;        // [N]
  TensorView<const float, 1> inverse_frequency;  // [at most D / 2]
  RopePairing pairing;
  float scale = 1.0F;
};
struct F32Hadamard {
  TensorView<float, 3> x;  // [N, heads, D]
  int block;               // a power of two that divides D
};
struct F32Gate {
  TensorView<const float, 2> gate;  // [N, C]
  TensorView<const float, 2> up;    // [N, C], or data nullptr
  Activation activation;
  TensorView<float, 2> out;  // [N, C]
};
struct F32SoftCap {
  TensorView<float, 2> x;  // [N, C]
  float cap;               // above 0
};
struct F32Gather {
  TensorView<const float, 2> x;       // [N, C]
  TensorView<const int32_t, 1> rows;  // [M], each in [0, N)
  TensorView<float, 2> out;           // [M, C]
};
struct F32Argmax {
  TensorView<const float, 2> x;  // [N, C], C at least 1
  TensorView<int32_t, 1> out;    // [N]
};
struct F32Convert {
  TensorView<const float, 2> x;  // [N, C]
  AnyView out;                   // [N, C] f32, f16 or bf16
};

F32Embed typed(const EmbedArgs& args);
F32Norm typed(const NormArgs& args);
std::vector<F32Linear> typed(const LinearArgs& args);  // one for each part of the weight
F32Rope typed(const RopeArgs& args);
F32Hadamard typed(const HadamardArgs& args);
F32Gate typed(const GateArgs& args);
F32SoftCap typed(const SoftCapArgs& args);
F32Gather typed(const GatherArgs& args);
F32Argmax typed(const ArgmaxArgs& args);
F32Convert typed(const ConvertArgs& args);  // also Error{kUnsupported} where x is not f32

}  // namespace kivi
