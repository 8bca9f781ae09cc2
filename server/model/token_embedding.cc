#include <algorithm>
#include <span>
#include <vector>

#include "kernels/copy_rows/copy_rows.h"
#include "kernels/embedding/embedding.h"
#include "server/model/forward_pass.h"

namespace palimpsest {
namespace {

// The vectors of `tokens`, counted from the table's first, to y.
void EmbedFrom(const Pass& pass, const EmbeddingWeights& weights, const int32_t* tokens, RowCount count, float* y) {
  const bool projected = weights.projection.out() > 0;
  if (projected) pass.Grow(pass.buffers.gathered, int64_t{count.rows} * weights.width);
  float* const table_rows = projected ? pass.buffers.gathered.data() : y;
  Embedding(pass.ctx, {.rows = count.rows,
                       .dim = weights.width,
                       .tokens = tokens,
                       .dtype = weights.dtype,
                       .table = weights.table.data(),
                       .scale = pass.config().embedding_scale,
                       .y = table_rows});
  if (projected) pass.Project(weights.projection, table_rows, weights.width, y, count);
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
                         .positions = pass.Put(std::span<const int64_t>(positions)),
                         .y = x});
}

// Table by table, each for the rows whose tokens are of it.
void EmbedFromClusters(const Pass& pass) {
  Workspace::Buffers& buffers = pass.buffers;
  const std::span<const int32_t> tokens = pass.batch.tokens;
  const int64_t D = pass.config().hidden;
  std::vector<int32_t> ids, rows;
  for (const EmbeddingWeights& table : pass.weights.embeddings) {
    ids.clear();
    rows.clear();
    for (int32_t r = 0; r < pass.num_rows(); ++r) {
      if (tokens[r] < table.begin || tokens[r] >= table.end) continue;
      ids.push_back(tokens[r] - table.begin);
      rows.push_back(r);
    }
    if (rows.empty()) continue;
    const auto steps = std::ranges::lower_bound(rows, pass.count.steps) - rows.begin();
    const RowCount count{.rows = static_cast<int32_t>(rows.size()), .steps = static_cast<int32_t>(steps)};
    pass.Grow(buffers.cluster, count.rows * D);
    EmbedFrom(pass, table, pass.Put(std::span<const int32_t>(ids)), count, buffers.cluster.data());
    CopyRows(pass.ctx, {.rows = count.rows,
                        .dim = D,
                        .x = buffers.cluster.data(),
                        .ldx = D,
                        .to = pass.Put(std::span<const int32_t>(rows)),
                        .y = buffers.x.data(),
                        .ldy = D});
  }
}

}  // namespace

void EmbedTokens(const Pass& pass) {
  float* const x = pass.buffers.x.data();
  if (pass.weights.embeddings.size() == 1) {
    EmbedFrom(pass, pass.weights.embeddings[0], pass.tokens, pass.count, x);
  } else {
    EmbedFromClusters(pass);
  }
  if (pass.config().sinusoidal_positions) AddPositions(pass, x);
}

}  // namespace palimpsest
