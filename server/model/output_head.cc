// The head: logits of a plain one, log-probabilities of one in clusters (adaptive softmax, 1609.04309).
#include <algorithm>
#include <span>
#include <vector>

#include "kernels/copy_rows/copy_rows.h"
#include "kernels/log_softmax/log_softmax.h"
#include "server/model/forward_pass.h"

namespace palimpsest {
namespace {

// Rows of the head's input on their way into a cluster.
const float* IntoCluster(const Pass& pass, const OutputWeights& output, const float* h, RowCount count) {
  if (output.projection.out() == 0) return h;
  AlignedArray<float>& projected = pass.buffers.projected;
  pass.Grow(projected, int64_t{count.rows} * output.projection.out());
  pass.Project(output.projection, h, pass.config().hidden, projected.data(), count);
  return projected.data();
}

void LogitsOf(const Pass& pass, const OutputWeights& output, const float* h, RowCount count, float* logits,
              int64_t ld) {
  const float* const input = IntoCluster(pass, output, h, count);
  pass.Project(output.weights, input, output.weights.in(), logits, count, {.ldy = ld, .bias = &output.bias});
}

// Where a row's clusters have their log-probabilities in the head: behind those of the first cluster's ids, the last
// cluster first.
int64_t MassAt(const ModelWeights& weights, size_t cluster) {
  return weights.outputs[0].weights.out() - static_cast<int64_t>(cluster);
}

// The head of all rows, which stays in buffers.inner, and in `logits` the first cluster's ids and what stands for the
// other clusters.
void ComputeHead(const Pass& pass, const float* h, RowCount count, float* logits) {
  const std::vector<OutputWeights>& outputs = pass.weights.outputs;
  const int64_t R = pass.config().vocabulary, head = outputs[0].weights.out();
  pass.Grow(pass.buffers.inner, count.rows * head);
  float* const top = pass.buffers.inner.data();
  LogitsOf(pass, outputs[0], h, count, top, head);
  LogSoftmax(pass.ctx,
             {.rows = count.rows, .dim = static_cast<int32_t>(head), .x = top, .ldx = head, .y = top, .ldy = head});
  CopyRows(pass.ctx, {.rows = count.rows, .dim = outputs[0].end, .x = top, .ldx = head, .y = logits, .ldy = R});
  if (pass.on_device()) return;  // every cluster will be computed
  for (int64_t r = 0; r < count.rows; ++r) {
    std::fill(logits + r * R + outputs[0].end, logits + (r + 1) * R, kNoLogit);
    for (size_t i = 1; i < outputs.size(); ++i) {
      logits[r * R + outputs[i].begin] = top[r * head + MassAt(pass.weights, i)];
    }
  }
}

// One cluster in all rows, in its place.
void ComputeClusterOfAll(const Pass& pass, size_t cluster, RowCount count, float* logits) {
  const OutputWeights& output = pass.weights.outputs[cluster];
  const int64_t R = pass.config().vocabulary, head = pass.weights.outputs[0].weights.out();
  float* const to = logits + output.begin;
  LogitsOf(pass, output, pass.buffers.h.data(), count, to, R);
  LogSoftmax(pass.ctx, {.rows = count.rows,
                        .dim = output.end - output.begin,
                        .x = to,
                        .ldx = R,
                        .shift = pass.buffers.inner.data() + MassAt(pass.weights, cluster),
                        .ldshift = head,
                        .y = to,
                        .ldy = R});
}

// One cluster in some rows, which are gathered first and scattered after. On the processor.
void ComputeClusterOfSome(const Pass& pass, size_t cluster, const std::vector<int32_t>& wanted, float* logits) {
  Workspace::Buffers& buffers = pass.buffers;
  const OutputWeights& output = pass.weights.outputs[cluster];
  const int64_t R = pass.config().vocabulary, D = pass.config().hidden, ids = output.end - output.begin;
  const int64_t head = pass.weights.outputs[0].weights.out();
  const RowCount count{.rows = static_cast<int32_t>(wanted.size())};
  std::vector<float> shift;
  for (const int32_t r : wanted) shift.push_back(buffers.inner[r * head + MassAt(pass.weights, cluster)]);
  pass.Grow(buffers.gathered, count.rows * D);
  pass.Grow(buffers.cluster, count.rows * ids);
  float* const some = buffers.cluster.data();
  CopyRows(pass.ctx, {.rows = count.rows,
                      .dim = D,
                      .from = wanted.data(),
                      .x = buffers.h.data(),
                      .ldx = D,
                      .y = buffers.gathered.data(),
                      .ldy = D});
  LogitsOf(pass, output, buffers.gathered.data(), count, some, ids);
  LogSoftmax(pass.ctx, {.rows = count.rows,
                        .dim = static_cast<int32_t>(ids),
                        .x = some,
                        .ldx = ids,
                        .shift = shift.data(),
                        .y = some,
                        .ldy = ids});
  CopyRows(pass.ctx, {.rows = count.rows,
                      .dim = ids,
                      .x = some,
                      .ldx = ids,
                      .to = wanted.data(),
                      .y = logits + output.begin,
                      .ldy = R});
}

// The clusters of the ids that are wanted in each row; on a device, all.
void ComputeClusters(const Pass& pass, std::span<const int32_t> targets, RowCount count, float* logits) {
  std::vector<int32_t> wanted;
  for (size_t i = 1; i < pass.weights.outputs.size(); ++i) {
    const OutputWeights& output = pass.weights.outputs[i];
    wanted.clear();
    for (int32_t r = 0; r < count.rows; ++r) {
      const int32_t target = targets.empty() || pass.on_device() ? kAllIds : targets[r];
      if (target == kAllIds || (target >= output.begin && target < output.end)) wanted.push_back(r);
    }
    if (std::ssize(wanted) == count.rows) {
      ComputeClusterOfAll(pass, i, count, logits);
    } else if (!wanted.empty()) {
      ComputeClusterOfSome(pass, i, wanted, logits);
    }
  }
}

}  // namespace

void ComputeLogits(const Pass& pass, float* logits) {
  const RowCount count = pass.logits_count;
  if (count.rows == 0) return;
  const int64_t D = pass.config().hidden;
  float* const h = pass.buffers.h.data();
  CopyRows(
      pass.ctx,
      {.rows = count.rows, .dim = D, .from = pass.logit_rows, .x = pass.buffers.x.data(), .ldx = D, .y = h, .ldy = D});
  const OutputWeights& first = pass.weights.outputs[0];
  const bool plain = pass.weights.outputs.size() == 1 && first.projection.out() == 0;
  if (plain && pass.config().final_norm && pass.FoldsNorm(first.weights, &first.bias)) {
    return pass.Project(first.weights, h, D, logits, count,
                        {.ldy = pass.config().vocabulary, .norm = &pass.weights.norm});
  }
  if (pass.config().final_norm) pass.Normalise(pass.weights.norm, h, h, count.rows);
  if (pass.weights.outputs.size() == 1) {
    LogitsOf(pass, first, h, count, logits, pass.config().vocabulary);
  } else {
    ComputeHead(pass, h, count, logits);
    ComputeClusters(pass, pass.batch.targets, count, logits);
  }
}

bool Model::StandsForCluster(const float* row, int32_t id) const {
  if (device() != nullptr) return false;
  const auto& outputs = weights_->outputs;
  const auto found = std::ranges::find(outputs.begin() + 1, outputs.end(), id, &OutputWeights::begin);
  return found != outputs.end() && found->end - found->begin > 1 && row[id + 1] == kNoLogit;
}

void Model::ExtendLogits(const ExecContext& ctx, Workspace& workspace, std::span<const int32_t> ids,
                         float* logits) const {
  std::vector<int32_t> targets(ids.begin(), ids.end());
  for (int32_t& target : targets) target = target < 0 ? kNoIdYet : target;
  if (ctx.device != nullptr) return;  // nothing was left out
  const ForwardBatch none;
  const Pass pass{.ctx = ctx, .weights = *weights_, .batch = none, .buffers = *workspace.buffers_};
  ComputeClusters(pass, targets, {.rows = static_cast<int32_t>(targets.size())}, logits);
}

}  // namespace palimpsest
