#include <algorithm>
#include <cstring>
#include <vector>

#include "kernels/embedding/embedding.h"
#include "server/model/forward_pass.h"

namespace palimpsest {
namespace {

// The tokens from `rows` on (all if empty), which are all of one table.
void EmbedFrom(const Pass& pass, const EmbeddingWeights& weights, const std::vector<int32_t>& tokens, float* table_rows,
               float* y) {
  const auto rows = static_cast<int32_t>(tokens.size());
  const bool projected = weights.projection.out() > 0;
  Embedding(pass.ctx, {.rows = rows,
                       .dim = weights.width,
                       .tokens = tokens.data(),
                       .dtype = weights.dtype,
                       .table = weights.table.data(),
                       .scale = pass.config().embedding_scale,
                       .y = projected ? table_rows : y});
  if (projected) pass.Project(weights.projection, table_rows, weights.width, y, rows);
}

void AddPositions(const Pass& pass, float* x) {
  const ForwardBatch& batch = pass.batch;
  std::vector<int64_t> positions(pass.num_rows());
  for (int32_t s = 0; s < batch.rows.num_sequences; ++s) {
    for (int32_t r = batch.rows.row_begin[s]; r < batch.rows.row_begin[s + 1]; ++r) {
      const int64_t taken = batch.first_position[s] + r - batch.rows.row_begin[s];
      positions[r] = pass.config().segment_length - 1 - taken;
    }
  }
  AddSinusoid(pass.ctx, {.rows = pass.num_rows(),
                         .dim = pass.config().hidden,
                         .frequencies = pass.weights.frequencies.data(),
                         .positions = positions.data(),
                         .y = x});
}

}  // namespace

void EmbedTokens(const Pass& pass, Workspace::Buffers& buffers) {
  const std::vector<EmbeddingWeights>& tables = pass.weights.embeddings;
  const std::span<const int32_t> tokens = pass.batch.tokens;
  const int64_t D = pass.config().hidden;
  std::vector<int32_t> ids, rows;
  for (const EmbeddingWeights& table : tables) {
    ids.clear();
    rows.clear();
    for (int32_t r = 0; r < pass.num_rows(); ++r) {
      if (tokens[r] < table.begin || tokens[r] >= table.end) continue;
      ids.push_back(tokens[r] - table.begin);
      rows.push_back(r);
    }
    if (rows.empty()) continue;
    if (table.projection.out() > 0) Grow(buffers.gathered, std::ssize(rows) * table.width);
    if (tables.size() == 1) {
      EmbedFrom(pass, table, ids, buffers.gathered.data(), buffers.x.data());
      continue;
    }
    Grow(buffers.cluster, std::ssize(rows) * D);
    EmbedFrom(pass, table, ids, buffers.gathered.data(), buffers.cluster.data());
    for (size_t i = 0; i < rows.size(); ++i) {
      std::copy_n(buffers.cluster.data() + static_cast<int64_t>(i) * D, D, buffers.x.data() + rows[i] * D);
    }
  }
  if (pass.config().sinusoidal_positions) AddPositions(pass, buffers.x.data());
}

}  // namespace palimpsest
