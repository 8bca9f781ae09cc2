#include "server/model/layers/pass.h"

#include "kernels/norm/norm.h"

namespace palimpsest {
namespace {

bool IsEmpty(const AlignedArray<float>* array) { return array == nullptr || array->size() == 0; }

}  // namespace

bool Pass::FoldsNorm(const NormLayer& norm, const PackedLinear& matrix, const AlignedArray<float>* bias) const {
  return norm.config.kind == NormConfig::Kind::kRms && IsEmpty(bias) && Folds(matrix, MathOf(matrix));
}

void Pass::Project(const PackedLinear& matrix, const ProjectionInput& input, float* y, RowCount count,
                   const ProjectionExtras& extras) const {
  Linear(ctx, {.weights = &matrix,
               .math = MathOf(matrix),
               .x = input.x,
               .ldx = input.ldx,
               .y = y,
               .ldy = extras.ldy == 0 ? matrix.out() : extras.ldy,
               .rows = count.rows,
               .accumulate = extras.accumulate,
               .bias = IsEmpty(extras.bias) ? nullptr : extras.bias->data(),
               .step_rows = count.steps,
               .norm_weight = input.norm == nullptr ? nullptr : input.norm->weight.data(),
               .norm_eps = input.norm == nullptr ? 0.0f : input.norm->config.eps,
               .swiglu = extras.swiglu});
}

void Pass::Normalize(const NormLayer& norm, const float* x, float* y, int32_t rows) const {
  switch (norm.config.kind) {
    case NormConfig::Kind::kLayer:
      return LayerNorm(ctx, {.rows = rows,
                             .dim = hidden,
                             .eps = norm.config.eps,
                             .x = x,
                             .ldx = hidden,
                             .weight = norm.weight.data(),
                             .bias = norm.bias.data(),
                             .y = y,
                             .ldy = hidden});
    case NormConfig::Kind::kRms:
      return RmsNorm(ctx, {.rows = rows,
                           .dim = hidden,
                           .eps = norm.config.eps,
                           .x = x,
                           .ldx = hidden,
                           .weight = norm.weight.data(),
                           .y = y,
                           .ldy = hidden});
  }
}

}  // namespace palimpsest
