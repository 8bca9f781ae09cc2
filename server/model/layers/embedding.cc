#include "server/model/layers/embedding.h"

#include <algorithm>
#include <cstring>
#include <span>

#include "kernels/copy_rows/copy_rows.h"
#include "kernels/embedding/embedding.h"
#include "server/model/loading/pack.h"

namespace palimpsest {
namespace {

// The vectors of `tokens`, counted from the table's first, to y.
void EmbedFrom(const Pass& pass, const EmbeddingTable& table, float scale, const int32_t* tokens, RowCount count,
               float* y) {
  const bool projected = table.projection.out() > 0;
  if (projected) pass.Grow(pass.buffers.gathered, int64_t{count.rows} * table.width);
  float* const table_rows = projected ? pass.buffers.gathered.data() : y;
  Embedding(pass.ctx, {.rows = count.rows,
                       .dim = table.width,
                       .tokens = tokens,
                       .dtype = table.dtype,
                       .table = table.table.data(),
                       .scale = scale,
                       .y = table_rows});
  if (projected) pass.Project(table.projection, {.x = table_rows, .ldx = table.width}, y, count);
}

void AddPositions(const Pass& pass, const EmbeddingLayer& layer, float* x) {
  const ForwardBatch& batch = pass.batch;
  std::vector<int64_t> positions(pass.num_rows());
  for (int32_t s = 0; s < batch.rows.num_sequences; ++s) {
    for (int32_t r = batch.rows.row_begin[s]; r < batch.rows.row_begin[s + 1]; ++r) {
      const int64_t position = batch.first_position[s] + r - batch.rows.row_begin[s];
      positions[r] = layer.segment_length - 1 - position;
    }
  }
  AddSinusoid(pass.ctx, {.rows = pass.num_rows(),
                         .dim = pass.hidden,
                         .frequencies = layer.frequencies.data(),
                         .positions = pass.Put(std::span<const int64_t>(positions)),
                         .y = x});
}

// Table by table, each for the rows whose tokens are of it.
void EmbedFromClusters(const Pass& pass, const EmbeddingLayer& layer) {
  Workspace::Buffers& buffers = pass.buffers;
  const std::span<const int32_t> tokens = pass.batch.tokens;
  const int64_t D = pass.hidden;
  std::vector<int32_t> ids, rows;
  for (const EmbeddingTable& table : layer.tables) {
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
    EmbedFrom(pass, table, layer.config.scale, pass.Put(std::span<const int32_t>(ids)), count, buffers.cluster.data());
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

std::vector<EmbeddingTensors> TakeEmbedding(const ModelConfig& config, TensorTaker& taker) {
  const EmbeddingConfig& embedding = config.embedding;
  if (!embedding.adaptive) return {{.table = taker.Take(Role::kEmbedding, 0, {config.vocabulary, config.hidden})}};
  const bool one_table = embedding.div_val == 1, projected = !one_table || embedding.size != config.hidden;
  std::vector<EmbeddingTensors> taken(one_table ? 1 : config.clusters());
  for (int32_t i = 0; i < std::ssize(taken); ++i) {
    const int64_t width = config.cluster_width(i);
    const int64_t ids = one_table ? config.vocabulary : config.cluster_end(i) - config.cluster_begin(i);
    taken[i].table = taker.Take(Role::kEmbedding, i, {ids, width});
    if (projected) taken[i].projection = taker.Take(Role::kEmbeddingProjection, i, {config.hidden, width});
  }
  return taken;
}

EmbeddingTable LoadTable(const EmbeddingTensors& tensors, int32_t begin, int32_t end, Device* device) {
  const TensorView& from = *tensors.table;
  EmbeddingTable table{.begin = begin, .end = end, .width = static_cast<int32_t>(from.shape[1]), .dtype = from.dtype};
  table.table = AlignedBytes(from.bytes());
  std::memcpy(table.table.data(), from.data, from.bytes());
  if (tensors.projection != nullptr) table.projection = Pack(*tensors.projection, device);
  return table;
}

void Widths(const EmbeddingLayer& layer, int64_t hidden, ScratchPlan& plan) {
  using Widths = PerBuffer<int64_t>;
  for (const EmbeddingTable& table : layer.tables) {
    if (table.projection.out() > 0) plan.AtLeast(&Widths::gathered, table.width);
  }
  if (layer.tables.size() > 1) plan.AtLeast(&Widths::cluster, hidden);
}

void EmbedTokens(const Pass& pass, const EmbeddingLayer& layer) {
  float* const x = pass.buffers.x.data();
  if (layer.tables.size() == 1) {
    EmbedFrom(pass, layer.tables[0], layer.config.scale, pass.tokens, pass.count, x);
  } else {
    EmbedFromClusters(pass, layer);
  }
  if (layer.config.sinusoids) AddPositions(pass, layer, x);
}

}  // namespace palimpsest
