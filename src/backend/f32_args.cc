#include "backend/f32_args.h"

#include "backend/norm_args.h"
#include "backend/require.h"

namespace kivi {
namespace {

void require_in_range(std::string_view what, TensorView<const int32_t, 1> ids, int64_t limit) {
  for (int64_t i = 0; i < ids.shape[0]; ++i) {
    if (ids[i] < 0 || ids[i] >= limit) {
      fail(ErrorCode::kInternal, "{} {} at {}: must be in 0 to {}", what, ids[i], i, limit - 1);
    }
  }
}

std::span<const WeightView> parts_of(const Weight* weight) {
  const auto* mapped = dynamic_cast<const MappedWeight*>(weight);
  if (mapped == nullptr) fail(ErrorCode::kInternal, "weight: missing, or loaded by another backend");
  return mapped->parts();
}

int64_t total_rows(std::span<const WeightView> parts) {
  int64_t rows = 0;
  for (const WeightView& part : parts) rows += part.rows;
  return rows;
}

}  // namespace

MappedWeight::MappedWeight(std::span<const WeightView> parts, std::unique_ptr<Buffer> memory)
    : Weight(total_rows(parts), parts.empty() ? 0 : parts.front().cols),
      parts_(parts.begin(), parts.end()),
      memory_(std::move(memory)) {
  if (parts.empty()) fail(ErrorCode::kInternal, "weight: no parts");
  for (const WeightView& part : parts) require_extent("weight: columns of a part", part.cols, cols_);
}

F32Embed typed(const EmbedArgs& args) {
  const std::span<const WeightView> parts = parts_of(args.table);
  require_extent("embed: parts of the table", static_cast<int64_t>(parts.size()), 1);
  const F32Embed typed{parts.front(), args.tokens.as<const int32_t, 1>(), args.out.as<float, 2>(), args.scale};
  require_extent("embed: rows of out", typed.out.shape[0], typed.tokens.shape[0]);
  require_extent("embed: channels of out", typed.out.shape[1], typed.table.cols);
  require_in_range("embed: token", typed.tokens, typed.table.rows);
  return typed;
}

F32Norm typed(const NormArgs& any) {
  const NormArgs args = with_heads(any);
  F32Norm typed{args.x.as<const float, 3>(),
                args.weight.as<const float, 2>(),
                {},
                args.kind,
                args.epsilon,
                args.out.as<float, 3>(),
                args.accumulate};
  if (!args.bias.empty()) typed.bias = args.bias.as<const float, 2>();
  return typed;
}

std::vector<F32Linear> typed(const LinearArgs& args) {
  const std::span<const WeightView> parts = parts_of(args.weight);
  const auto x = args.x.as<const float, 2>();
  const auto out = args.out.as<float, 2>();
  require_extent("linear: columns of x", x.shape[1], args.weight->cols());
  require_extent("linear: rows of out", out.shape[0], x.shape[0]);
  require_extent("linear: columns of out", out.shape[1], args.weight->rows());
  TensorView<const float, 1> bias;
  if (!args.bias.empty()) {
    bias = args.bias.as<const float, 1>();
    require_extent("linear: length of bias", bias.shape[0], args.weight->rows());
  }
  std::vector<F32Linear> typed;
  int64_t first = 0;
  for (const WeightView& part : parts) {
    typed.push_back({x, part, {}, {out.data + first, {out.shape[0], part.rows}, out.stride}, args.accumulate});
    if (bias.data != nullptr) typed.back().bias = {bias.data + first, {part.rows}};
    first += part.rows;
  }
  return typed;
}

F32Rope typed(const RopeArgs& args) {
  const F32Rope typed{args.x.as<float, 3>(), args.positions.as<const int32_t, 1>(),
                      args.inverse_frequency.as<const float, 1>(), args.pairing, args.scale};
  require_extent("rope: number of positions", typed.positions.shape[0], typed.x.shape[0]);
  if (2 * typed.inverse_frequency.shape[0] > typed.x.shape[2]) {
    fail(ErrorCode::kInternal, "rope: {} frequencies, at most {} fit head_dim {}", typed.inverse_frequency.shape[0],
         typed.x.shape[2] / 2, typed.x.shape[2]);
  }
  return typed;
}

F32Hadamard typed(const HadamardArgs& args) {
  const F32Hadamard typed{args.x.as<float, 3>(), args.block};
  require_hadamard_block(args.block, typed.x.shape[2]);
  return typed;
}

F32Gate typed(const GateArgs& args) {
  F32Gate typed{args.gate.as<const float, 2>(), {}, args.activation, args.out.as<float, 2>()};
  require_same_shape("gate: shape of out", args.out, args.gate);
  if (!args.up.empty()) {
    typed.up = args.up.as<const float, 2>();
    require_same_shape("gate: shape of up", args.up, args.gate);
  }
  return typed;
}

F32SoftCap typed(const SoftCapArgs& args) {
  if (!(args.cap > 0)) fail(ErrorCode::kInternal, "soft_cap: {}, must be above 0", args.cap);
  return {args.x.as<float, 2>(), args.cap};
}

F32Gather typed(const GatherArgs& args) {
  const F32Gather typed{args.x.as<const float, 2>(), args.rows.as<const int32_t, 1>(), args.out.as<float, 2>()};
  require_extent("gather: rows of out", typed.out.shape[0], typed.rows.shape[0]);
  require_extent("gather: channels of out", typed.out.shape[1], typed.x.shape[1]);
  require_in_range("gather: row", typed.rows, typed.x.shape[0]);
  return typed;
}

F32Argmax typed(const ArgmaxArgs& args) {
  const F32Argmax typed{args.x.as<const float, 2>(), args.out.as<int32_t, 1>()};
  require_extent("argmax: length of out", typed.out.shape[0], typed.x.shape[0]);
  if (typed.x.shape[1] < 1) fail(ErrorCode::kInternal, "argmax of no columns");
  return typed;
}

F32Convert typed(const ConvertArgs& args) {
  if (args.x.dtype != DType::kF32 || args.out.dtype == DType::kI32) {
    fail(ErrorCode::kUnsupported, "convert: no kernel from {} to {}", name(args.x.dtype), name(args.out.dtype));
  }
  const F32Convert typed{args.x.as<const float, 2>(), args.out};
  require_same_shape("convert: shape of out", args.out, args.x);
  return typed;
}

}  // namespace kivi
