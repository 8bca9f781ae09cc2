// The input end of a model: vectors of tokens, with their positions.
#pragma once

#include <vector>

#include "server/model/layers/pass.h"
#include "server/model/loading/tensor_taker.h"

namespace palimpsest {

struct EmbeddingTensors {
  const TensorView* table = nullptr;       // [ids, width]
  const TensorView* projection = nullptr;  // [D, width]; null: width is D
};

// The vectors of the ids from `begin` on.
struct EmbeddingTable {
  int32_t begin = 0;
  int32_t end = 0;
  int32_t width = 0;
  DType dtype = DType::kF32;
  AlignedBytes table = {};       // [ids, width] in the file's type
  PackedLinear projection = {};  // [D, width]; empty: width is D
};

struct EmbeddingLayer {
  EmbeddingConfig config;
  int32_t segment_length = 0;
  std::vector<EmbeddingTable> tables = {};
  AlignedArray<float> frequencies = {};  // [D / 2] of the sinusoids

  void VisitArrays(auto&& visit) {
    for (EmbeddingTable& table : tables) {
      visit(table.table);
      visit(table.projection);
    }
    visit(frequencies);
  }
};

// One, or one for each cluster; with div_val 1 all clusters are rows of one table.
std::vector<EmbeddingTensors> TakeEmbedding(const ModelConfig& config, TensorTaker& taker);
EmbeddingTable LoadTable(const EmbeddingTensors& tensors, int32_t begin, int32_t end, Device* device);
void Widths(const EmbeddingLayer& layer, int64_t hidden, ScratchPlan& plan);
// buffers.x = the vectors of the batch's tokens.
void EmbedTokens(const Pass& pass, const EmbeddingLayer& layer);

}  // namespace palimpsest
