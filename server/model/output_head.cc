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

// First logits of the clusters that are in the file in reverse order, behind those of the first cluster's ids.
void ComputeClusters(const Pass& pass, const float* h, int32_t rows, Workspace::Buffers& buffers, float* logits) {
  const std::vector<OutputWeights>& outputs = pass.weights.outputs;
  const std::span<const int32_t> targets = pass.batch.targets;
  const int64_t R = pass.config().vocabulary, D = pass.config().hidden;
  const int64_t first = outputs[0].end, head = outputs[0].weights.out();

  // Here `inner` and `projected` are the head's: the layers are done with them.
  Grow(buffers.inner, rows * head);
  float* const top = buffers.inner.data();
  LogitsOf(pass, outputs[0], h, rows, buffers.projected, top, head);
  LogSoftmax(pass.ctx, {.rows = rows, .dim = static_cast<int32_t>(head), .x = top, .ldx = head, .y = top, .ldy = head});
  for (int64_t r = 0; r < rows; ++r) std::copy_n(top + r * head, first, logits + r * R);

  std::vector<int32_t> wanted;
  std::vector<float> shift;
  for (size_t i = 1; i < outputs.size(); ++i) {
    const OutputWeights& output = outputs[i];
    const int64_t ids = output.end - output.begin;
    const float* const mass = top + head - static_cast<int64_t>(i);
    wanted.clear();
    shift.clear();
    for (int32_t r = 0; r < rows; ++r) {
      const bool all = targets.empty() || targets[r] < 0;
      if (all || (targets[r] >= output.begin && targets[r] < output.end)) {
        wanted.push_back(r);
        shift.push_back(mass[r * head]);
      } else {
        float* const to = logits + r * R + output.begin;
        std::fill_n(to, ids, kNoLogit);
        to[0] = mass[r * head];
      }
    }
    const auto count = static_cast<int32_t>(wanted.size());
    if (count == 0) continue;
    const bool every = count == rows;
    if (!every) {
      Grow(buffers.gathered, count * D);
      for (int64_t j = 0; j < count; ++j) std::copy_n(h + wanted[j] * D, D, buffers.gathered.data() + j * D);
      Grow(buffers.cluster, count * ids);
    }
    float* const to = every ? logits + output.begin : buffers.cluster.data();
    const int64_t ld = every ? R : ids;
    LogitsOf(pass, output, every ? h : buffers.gathered.data(), count, buffers.projected, to, ld);
    LogSoftmax(pass.ctx, {.rows = count,
                          .dim = static_cast<int32_t>(ids),
                          .x = to,
                          .ldx = ld,
                          .shift = shift.data(),
                          .y = to,
                          .ldy = ld});
    if (every) continue;
    for (int64_t j = 0; j < count; ++j) std::copy_n(to + j * ids, ids, logits + wanted[j] * R + output.begin);
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
    ComputeClusters(pass, h, rows, buffers, logits);
  }
}

}  // namespace palimpsest
