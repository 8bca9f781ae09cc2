// The output end of a model: logits of a plain head, log-probabilities of one in clusters (adaptive softmax,
// 1609.04309).
#pragma once

#include <optional>
#include <span>
#include <vector>

#include "server/model/layers/embedding.h"

namespace palimpsest {

struct HeadTensors {
  const TensorView* projection = nullptr;  // [width, D]; or [D, width] if transposed
  bool transposed_projection = false;
  std::vector<const TensorView*> weights = {};  // of the first: those of its ids, then one row for each other cluster
  std::vector<const TensorView*> biases = {};
};

struct HeadCluster {
  int32_t begin = 0;
  int32_t end = 0;
  PackedLinear projection = {};  // [width, D]; empty: width is D
  PackedLinear weights = {};  // [ids, width]; below the first cluster's, one row for each other cluster, the last first
  AlignedArray<float> bias = {};  // of each row, or empty
};

struct HeadLayer {
  int32_t vocabulary = 0;
  std::optional<NormLayer> norm;
  std::vector<HeadCluster> clusters;  // one: a plain head

  void VisitArrays(auto&& visit) {
    if (norm) norm->VisitArrays(visit);
    for (HeadCluster& cluster : clusters) {
      visit(cluster.projection);
      visit(cluster.weights);
      visit(cluster.bias);
    }
  }
};

// One for each cluster. Of the norm before it, nothing.
std::vector<HeadTensors> TakeHead(const ModelConfig& config, std::span<const EmbeddingTensors> embeddings,
                                  TensorTaker& taker);
HeadCluster LoadCluster(const HeadTensors& tensors, int32_t begin, int32_t end, Device* device);
void Widths(const HeadLayer& layer, int64_t hidden, ScratchPlan& plan);
// The logits of the rows that want them, from buffers.x.
void ComputeLogits(const Pass& pass, const HeadLayer& layer, float* logits);
// Where a draw fell on a cluster that ComputeLogits left out, computes that cluster and draws again. `logits` is what
// it filled in, and where the answers' rows are. On the processor.
void SampleAgain(const Pass& pass, const HeadLayer& layer, std::span<SampleRow> answers, float* logits);

}  // namespace palimpsest
