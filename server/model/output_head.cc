// The head: logits of a plain one, log-probabilities of one in clusters (adaptive softmax, 1609.04309).
#include <algorithm>
#include <cstring>
#include <span>
#include <vector>

#include "kernels/log_softmax/log_softmax.h"
#include "server/model/forward_pass.h"

namespace palimpsest {
namespace {

// Rows of the head's input on their way into a cluster.
const float* IntoCluster(const Pass& pass, const OutputWeights& output, const float* h, int32_t rows,
                         AlignedArray<float>& projected) {
  if (output.projection.out() == 0) return h;
  Grow(projected, rows * output.projection.out());
  pass.Project(output.projection, h, pass.config().hidden, projected.data(), rows);
  return projected.data();
}

void LogitsOf(const Pass& pass, const OutputWeights& output, const float* h, int32_t rows,
              AlignedArray<float>& projected, float* logits, int64_t ld) {
  const float* const input = IntoCluster(pass, output, h, rows, projected);
  pass.Project(output.weights, input, output.weights.in(), logits, rows, ld, /*accumulate=*/false, &output.bias);
}

// Where a row's clusters have their log-probabilities in the head: behind those of the first cluster's ids, the last
// cluster first.
int64_t MassAt(const ModelWeights& weights, size_t cluster) {
  return weights.outputs[0].weights.out() - static_cast<int64_t>(cluster);
}

// The head of all rows, which stays in buffers.inner, and in `logits` the first cluster's ids and what stands for the
// other clusters.
void ComputeHead(const Pass& pass, const float* h, int32_t rows, Workspace::Buffers& buffers, float* logits) {
  const std::vector<OutputWeights>& outputs = pass.weights.outputs;
  const int64_t R = pass.config().vocabulary, head = outputs[0].weights.out();
  Grow(buffers.inner, rows * head);
  float* const top = buffers.inner.data();
  LogitsOf(pass, outputs[0], h, rows, buffers.projected, top, head);
  LogSoftmax(pass.ctx, {.rows = rows, .dim = static_cast<int32_t>(head), .x = top, .ldx = head, .y = top, .ldy = head});
  for (int64_t r = 0; r < rows; ++r) {
    std::copy_n(top + r * head, outputs[0].end, logits + r * R);
    std::fill(logits + r * R + outputs[0].end, logits + (r + 1) * R, kNoLogit);
    for (size_t i = 1; i < outputs.size(); ++i) {
      logits[r * R + outputs[i].begin] = top[r * head + MassAt(pass.weights, i)];
    }
  }
}

// One cluster, for these rows of `rows`.
void ComputeCluster(const Pass& pass, size_t cluster, const std::vector<int32_t>& wanted, int32_t rows,
                    Workspace::Buffers& buffers, float* logits) {
  const OutputWeights& output = pass.weights.outputs[cluster];
  const int64_t R = pass.config().vocabulary, D = pass.config().hidden, ids = output.end - output.begin;
  const int64_t head = pass.weights.outputs[0].weights.out();
  const auto count = static_cast<int32_t>(wanted.size());
  std::vector<float> shift;
  for (const int32_t r : wanted) shift.push_back(buffers.inner[r * head + MassAt(pass.weights, cluster)]);
  // All rows are computed in their place; some are gathered first and scattered after.
  const bool every = count == rows;
  const float* h = buffers.h.data();
  if (!every) {
    Grow(buffers.gathered, count * D);
    Grow(buffers.cluster, count * ids);
    for (int64_t j = 0; j < count; ++j) std::copy_n(h + wanted[j] * D, D, buffers.gathered.data() + j * D);
    h = buffers.gathered.data();
  }
  float* const to = every ? logits + output.begin : buffers.cluster.data();
  const int64_t ld = every ? R : ids;
  LogitsOf(pass, output, h, count, buffers.projected, to, ld);
  LogSoftmax(
      pass.ctx,
      {.rows = count, .dim = static_cast<int32_t>(ids), .x = to, .ldx = ld, .shift = shift.data(), .y = to, .ldy = ld});
  if (every) return;
  for (int64_t j = 0; j < count; ++j) std::copy_n(to + j * ids, ids, logits + wanted[j] * R + output.begin);
}

// The clusters of the ids that are wanted in each row.
void ComputeClusters(const Pass& pass, std::span<const int32_t> targets, int32_t rows, Workspace::Buffers& buffers,
                     float* logits) {
  std::vector<int32_t> wanted;
  for (size_t i = 1; i < pass.weights.outputs.size(); ++i) {
    const OutputWeights& output = pass.weights.outputs[i];
    wanted.clear();
    for (int32_t r = 0; r < rows; ++r) {
      const int32_t target = targets.empty() ? kAllIds : targets[r];
      if (target == kAllIds || (target >= output.begin && target < output.end)) wanted.push_back(r);
    }
    if (!wanted.empty()) ComputeCluster(pass, i, wanted, rows, buffers, logits);
  }
}

}  // namespace

void ComputeLogits(const Pass& pass, Workspace::Buffers& buffers, float* logits) {
  const std::span<const int32_t> logit_rows = pass.batch.logit_rows;
  const auto rows = static_cast<int32_t>(logit_rows.size());
  if (rows == 0) return;
  const int64_t D = pass.config().hidden;
  float* const h = buffers.h.data();
  for (int64_t i = 0; i < rows; ++i) std::copy_n(buffers.x.data() + logit_rows[i] * D, D, h + i * D);
  if (pass.config().final_norm) pass.Normalise(pass.weights.norm, h, h, rows);
  if (pass.weights.outputs.size() == 1) {
    LogitsOf(pass, pass.weights.outputs[0], h, rows, buffers.projected, logits, pass.config().vocabulary);
  } else {
    ComputeHead(pass, h, rows, buffers, logits);
    ComputeClusters(pass, pass.batch.targets, rows, buffers, logits);
  }
}

bool Model::StandsForCluster(const float* row, int32_t id) const {
  const auto& outputs = weights_->outputs;
  const auto found = std::ranges::find(outputs.begin() + 1, outputs.end(), id, &OutputWeights::begin);
  return found != outputs.end() && found->end - found->begin > 1 && row[id + 1] == kNoLogit;
}

void Model::ExtendLogits(const ExecContext& ctx, Workspace& workspace, std::span<const int32_t> ids,
                         float* logits) const {
  std::vector<int32_t> targets(ids.begin(), ids.end());
  for (int32_t& target : targets) target = target < 0 ? kNoIdYet : target;
  const ForwardBatch none;
  const Pass pass{.ctx = ctx, .weights = *weights_, .batch = none};
  ComputeClusters(pass, targets, static_cast<int32_t>(targets.size()), *workspace.buffers_, logits);
}

}  // namespace palimpsest
