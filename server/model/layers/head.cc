// The head: logits of a plain one, log-probabilities of one in clusters (adaptive softmax, 1609.04309).
#include "server/model/layers/head.h"

#include <algorithm>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "kernels/copy_rows/copy_rows.h"
#include "kernels/log_softmax/log_softmax.h"
#include "server/model/loading/pack.h"

namespace palimpsest {
namespace {

// Rows of the head's input on their way into a cluster.
const float* IntoCluster(const Pass& pass, const HeadCluster& output, const float* h, RowCount count) {
  if (output.projection.out() == 0) return h;
  AlignedArray<float>& projected = pass.buffers.projected;
  pass.Grow(projected, int64_t{count.rows} * output.projection.out());
  pass.Project(output.projection, {.x = h, .ldx = pass.hidden}, projected.data(), count);
  return projected.data();
}

void LogitsOf(const Pass& pass, const HeadCluster& output, const float* h, RowCount count, float* logits, int64_t ld) {
  const float* const input = IntoCluster(pass, output, h, count);
  pass.Project(output.weights, {.x = input, .ldx = output.weights.in()}, logits, count,
               {.ldy = ld, .bias = &output.bias});
}

// Where a row's clusters have their log-probabilities in the head: behind those of the first cluster's ids, the last
// cluster first.
int64_t MassAt(const HeadLayer& layer, size_t cluster) {
  return layer.clusters[0].weights.out() - static_cast<int64_t>(cluster);
}

// The head of all rows, which stays in buffers.inner, and in `logits` the first cluster's ids and what stands for the
// other clusters.
void ComputeHead(const Pass& pass, const HeadLayer& layer, const float* h, RowCount count, float* logits) {
  const std::vector<HeadCluster>& outputs = layer.clusters;
  const int64_t R = layer.vocabulary, head = outputs[0].weights.out();
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
      logits[r * R + outputs[i].begin] = top[r * head + MassAt(layer, i)];
    }
  }
}

// One cluster in all rows, in its place.
void ComputeClusterOfAll(const Pass& pass, const HeadLayer& layer, size_t cluster, RowCount count, float* logits) {
  const HeadCluster& output = layer.clusters[cluster];
  const int64_t R = layer.vocabulary, head = layer.clusters[0].weights.out();
  float* const to = logits + output.begin;
  LogitsOf(pass, output, pass.buffers.h.data(), count, to, R);
  LogSoftmax(pass.ctx, {.rows = count.rows,
                        .dim = output.end - output.begin,
                        .x = to,
                        .ldx = R,
                        .shift = pass.buffers.inner.data() + MassAt(layer, cluster),
                        .ldshift = head,
                        .y = to,
                        .ldy = R});
}

// One cluster in some rows, which are gathered first and scattered after. On the processor.
void ComputeClusterOfSome(const Pass& pass, const HeadLayer& layer, size_t cluster, const std::vector<int32_t>& wanted,
                          float* logits) {
  Workspace::Buffers& buffers = pass.buffers;
  const HeadCluster& output = layer.clusters[cluster];
  const int64_t R = layer.vocabulary, D = pass.hidden, ids = output.end - output.begin;
  const int64_t head = layer.clusters[0].weights.out();
  const RowCount count{.rows = static_cast<int32_t>(wanted.size())};
  std::vector<float> shift;
  for (const int32_t r : wanted) shift.push_back(buffers.inner[r * head + MassAt(layer, cluster)]);
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
void ComputeClusters(const Pass& pass, const HeadLayer& layer, std::span<const int32_t> targets, RowCount count,
                     float* logits) {
  std::vector<int32_t> wanted;
  for (size_t i = 1; i < layer.clusters.size(); ++i) {
    const HeadCluster& output = layer.clusters[i];
    wanted.clear();
    for (int32_t r = 0; r < count.rows; ++r) {
      const int32_t target = targets.empty() || pass.on_device() ? kAllIds : targets[r];
      if (target == kAllIds || (target >= output.begin && target < output.end)) wanted.push_back(r);
    }
    if (std::ssize(wanted) == count.rows) {
      ComputeClusterOfAll(pass, layer, i, count, logits);
    } else if (!wanted.empty()) {
      ComputeClusterOfSome(pass, layer, i, wanted, logits);
    }
  }
}

// Whether `id` in this row of logits stands for the whole of its cluster, which was left out.
bool StandsForCluster(const HeadLayer& layer, const float* row, int32_t id) {
  const auto& clusters = layer.clusters;
  const auto found = std::ranges::find(clusters.begin() + 1, clusters.end(), id, &HeadCluster::begin);
  return found != clusters.end() && found->end - found->begin > 1 && row[id + 1] == kNoLogit;
}

// The one table of a head that is not adaptive.
HeadTensors TakePlain(const ModelConfig& config, const TensorView* embedding, TensorTaker& taker) {
  const std::vector<int64_t> shape = {config.vocabulary, config.hidden};
  if (!config.head.tied) return {.weights = {taker.Take(Role::kHead, 0, shape)}};
  const TensorView* const copy = taker.Find(Role::kHead, 0);
  if (copy != nullptr && embedding != nullptr) {
    // Some writers store the tied matrix twice. Another matrix would be a model that contradicts its config.
    taker.Ignore(Role::kHead, 0);
    if (copy->shape != shape || copy->dtype != embedding->dtype ||
        std::memcmp(copy->data, embedding->data, embedding->bytes()) != 0) {
      taker.Fail(absl::StrCat("config.json says tie_word_embeddings, but '",
                              taker.architecture().NameOf(Role::kHead, 0), "' is there and differs from '",
                              taker.architecture().NameOf(Role::kEmbedding, 0), "'"));
    }
  }
  return {.weights = {embedding}};
}

std::vector<HeadTensors> TakeAdaptive(const ModelConfig& config, std::span<const EmbeddingTensors> embeddings,
                                      TensorTaker& taker) {
  const EmbeddingConfig& embedding = config.embedding;
  const bool one_table = embedding.div_val == 1, projected = !one_table || embedding.size != config.hidden;
  std::vector<const TensorView*> weights, biases;
  for (int32_t i = 0; i < std::ssize(embeddings); ++i) {
    const int64_t ids = one_table ? config.vocabulary : config.cluster_end(i) - config.cluster_begin(i);
    weights.push_back(config.head.tied ? embeddings[i].table
                                       : taker.Take(Role::kHead, i, {ids, config.cluster_width(i)}));
    biases.push_back(taker.Take(Role::kHeadBias, i, {ids}));
  }
  std::vector<HeadTensors> taken(config.clusters());
  for (int32_t i = 0; i < config.clusters(); ++i) {
    HeadTensors& head = taken[i];
    if (projected && config.head.tied_projections[i]) {
      head.projection = embeddings[one_table ? 0 : i].projection;
      head.transposed_projection = true;
    } else if (projected) {
      head.projection = taker.Take(Role::kHeadProjection, i, {config.cluster_width(i), config.hidden});
    }
    const int64_t begin = config.cluster_begin(i), end = config.cluster_end(i);
    head.weights = {one_table ? taker.Slice(weights[0], begin, end) : weights[i]};
    head.biases = {one_table ? taker.Slice(biases[0], begin, end) : biases[i]};
  }
  if (const int32_t others = config.clusters() - 1; others > 0) {
    taken[0].weights.push_back(taker.Take(Role::kHeadClusters, 0, {others, config.cluster_width(0)}));
    taken[0].biases.push_back(taker.Take(Role::kHeadClusterBias, 0, {others}));
  }
  return taken;
}

}  // namespace

std::vector<HeadTensors> TakeHead(const ModelConfig& config, std::span<const EmbeddingTensors> embeddings,
                                  TensorTaker& taker) {
  if (config.embedding.adaptive) return TakeAdaptive(config, embeddings, taker);
  return {TakePlain(config, embeddings[0].table, taker)};
}

HeadCluster LoadCluster(const HeadTensors& tensors, int32_t begin, int32_t end, Device* device) {
  HeadCluster cluster{.begin = begin, .end = end, .weights = Pack(tensors.weights, device)};
  if (!tensors.biases.empty()) cluster.bias = Concatenated(tensors.biases);
  if (tensors.projection == nullptr) return cluster;
  if (!tensors.transposed_projection) {
    cluster.projection = Pack(*tensors.projection, device);
    return cluster;
  }
  const AlignedArray<float> transposed = Transposed(*tensors.projection);
  cluster.projection = PackedLinear::Pack(DType::kF32, transposed.data(), tensors.projection->shape[1],
                                          tensors.projection->shape[0], device);
  return cluster;
}

void Widths(const HeadLayer& layer, int64_t hidden, ScratchPlan& plan) {
  using Widths = PerBuffer<int64_t>;
  for (const HeadCluster& cluster : layer.clusters) plan.AtLeast(&Widths::projected, cluster.projection.out());
  if (layer.clusters.size() == 1) return;
  plan.AtLeast(&Widths::inner, layer.clusters[0].weights.out());
  plan.AtLeast(&Widths::cluster, hidden);
}

void ComputeLogits(const Pass& pass, const HeadLayer& layer, float* logits) {
  const RowCount count = pass.logits_count;
  if (count.rows == 0) return;
  const int64_t D = pass.hidden;
  float* const h = pass.buffers.h.data();
  CopyRows(
      pass.ctx,
      {.rows = count.rows, .dim = D, .from = pass.logit_rows, .x = pass.buffers.x.data(), .ldx = D, .y = h, .ldy = D});
  const HeadCluster& first = layer.clusters[0];
  const bool plain = layer.clusters.size() == 1 && first.projection.out() == 0;
  if (plain && layer.norm && pass.FoldsNorm(*layer.norm, first.weights, &first.bias)) {
    return pass.Project(first.weights, {.x = h, .ldx = D, .norm = &*layer.norm}, logits, count,
                        {.ldy = layer.vocabulary});
  }
  if (layer.norm) pass.Normalize(*layer.norm, h, h, count.rows);
  if (layer.clusters.size() == 1) {
    LogitsOf(pass, first, h, count, logits, layer.vocabulary);
  } else {
    ComputeHead(pass, layer, h, count, logits);
    ComputeClusters(pass, layer, pass.batch.targets, count, logits);
  }
}

void SampleAgain(const Pass& pass, const HeadLayer& layer, std::span<SampleRow> answers, float* logits) {
  std::vector<int32_t> wanted(answers.size());
  // It falls into the cluster then, or, if rounding will have it, into a neighbor: hence the loop, which ends when no
  // cluster is left.
  for (bool again = true; again;) {
    again = false;
    for (size_t i = 0; i < answers.size(); ++i) {
      const SampleRow& answer = answers[i];
      const bool left_out =
          answer.finite && answer.settings != nullptr && StandsForCluster(layer, answer.logits, answer.token);
      wanted[i] = left_out ? answer.token : kNoIdYet;
      again |= left_out;
    }
    if (!again) return;
    ComputeClusters(pass, layer, wanted, {.rows = static_cast<int32_t>(wanted.size())}, logits);
    for (size_t i = 0; i < answers.size(); ++i) {
      if (wanted[i] >= 0) Sample(pass.ctx, answers.subspan(i, 1), layer.vocabulary);
    }
  }
}

}  // namespace palimpsest
