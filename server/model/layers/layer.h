// The contract of a kind of layer. Each alternative of LayerConfig has, in a file of its own, one overload of
//
//   Tensors(config, hidden)             the tensors that it is made of, from the config alone
//   StateFlops(config)                  arithmetic of a row beside its projections
//   Load(config, tensors, ..., device)  the layer, its weights packed
// and of a mixer
//   Pieces(config, builder)             what it keeps in a state, as typed handles
//
// and its layer, a struct of config, handles and weights, has
//
//   VisitArrays(visit)                  calls visit with every PackedLinear and AlignedArray that it owns
//   Widths(layer, plan)                 what it needs of the buffers that all layers share
//   Mix(pass, layer, input)             a mixer: buffers.mixed from the input; Run(...) of an MLP: adds to buffers.x
//
// They are reached by std::visit, so one that is missing does not compile. Headers: fast_weight.h, attention.h, mlp.h;
// the ends of a model are embedding.h and head.h.
#pragma once

#include <cstdint>

#include "server/model/layers/pass.h"
#include "server/model/loading/pack.h"
#include "server/model/loading/tensors_by_role.h"

namespace palimpsest {

// What a sub-layer is fed with.
struct SublayerInput {
  ProjectionInput normed;
  const float* raw = nullptr;  // [rows, D], the residual stream as it is
};

// buffers.projected = the stacked projections of the input, the query's from the raw one if there is a matrix for it.
inline void ProjectSublayerInput(const Pass& pass, const StackedLinear& projections, const PackedLinear& raw_query,
                                 const SublayerInput& input) {
  float* const projected = pass.buffers.projected.data();
  const ProjectionExtras extras{.ldy = projections.stride()};
  pass.Project(projections.matrix(), input.normed, projected, pass.count, extras);
  if (raw_query.out() == 0) return;
  pass.Project(raw_query, {.x = input.raw, .ldx = pass.hidden}, projected, pass.count, extras);
}

}  // namespace palimpsest
