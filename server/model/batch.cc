// A call of Model::Forward: its batch checked, put where the ops run, and run directly or from a recording.
#include <algorithm>
#include <memory>
#include <numeric>
#include <span>
#include <variant>
#include <vector>

#include "base/check.h"
#include "server/model/chunk.h"
#include "server/model/forward.h"
#include "server/model/padded_steps.h"

namespace palimpsest {

Workspace::Workspace() : buffers_(std::make_unique<Buffers>()) {}
Workspace::~Workspace() = default;
Workspace::Workspace(Workspace&&) noexcept = default;
Workspace& Workspace::operator=(Workspace&&) noexcept = default;
Workspace::Counts Workspace::counts() const { return buffers_->counts; }

namespace {

using Buffers = Workspace::Buffers;

Pass PassOf(const ModelWeights& weights, const ExecContext& ctx, const ForwardBatch& batch, Buffers& buffers) {
  return {.ctx = ctx,
          .batch = batch,
          .buffers = buffers,
          .hidden = weights.config.hidden,
          .bf16_math = weights.math,
          .slots = weights.slots};
}

void CheckBatch(const ForwardBatch& batch, const ModelConfig& config, bool on_device) {
  const int32_t rows = batch.rows.num_rows();
  PALIMPSEST_CHECK(static_cast<int64_t>(batch.tokens.size()) == rows);
  for (int32_t token : batch.tokens) PALIMPSEST_CHECK(token >= 0 && token < config.vocabulary);
  int32_t previous = -1;
  for (int32_t row : batch.logit_rows) {
    PALIMPSEST_CHECK(row > previous && row < rows);
    previous = row;
  }
  PALIMPSEST_CHECK(batch.targets.empty() || batch.targets.size() == batch.logit_rows.size());
  PALIMPSEST_CHECK(reinterpret_cast<uintptr_t>(batch.states) % 64 == 0 && batch.state_stride % 64 == 0);
  for (int32_t s = 0; on_device && s < batch.rows.num_sequences; ++s) {
    const int32_t length = batch.rows.length(s);
    PALIMPSEST_CHECK(s < batch.rows.num_steps ? length == 1 : length % kChunk != 1);
  }
  if (!config.counts_tokens()) return;
  PALIMPSEST_CHECK(static_cast<int64_t>(batch.first_position.size()) == batch.rows.num_sequences);
  for (int32_t s = 0; s < batch.rows.num_sequences; ++s) {
    const int64_t first = batch.first_position[s];
    PALIMPSEST_CHECK(first >= 0);
    if (config.embedding.sinusoids) PALIMPSEST_CHECK(first + batch.rows.length(s) <= config.segment_length);
  }
}

// Those of a vocabulary in clusters for the most that a pass can need of them.
PerBuffer<int64_t> WidthsOf(const ModelWeights& weights) {
  const int64_t hidden = weights.config.hidden;
  ScratchPlan plan;
  plan.AtLeast(&PerBuffer<int64_t>::x, hidden);
  plan.AtLeast(&PerBuffer<int64_t>::h, hidden);
  Widths(weights.embedding, hidden, plan);
  for (const Layer& layer : weights.layers) {
    std::visit([&](const auto& mixer) { Widths(mixer, plan); }, layer.mixer);
    std::visit([&](const auto& channel) { Widths(channel, plan); }, layer.channel);
  }
  Widths(weights.head, hidden, plan);
  return plan.widths();
}

void GrowBuffers(const ModelWeights& weights, int64_t rows, Device* device, Buffers& buffers) {
  const PerBuffer<int64_t> widths = WidthsOf(weights);
  for (size_t i = 0; i < std::size(PerBuffer<int64_t>::kAll); ++i) {
    AlignedArray<float>& buffer = buffers.*PerBuffer<AlignedArray<float>>::kAll[i];
    buffers.Grow(buffer, rows * widths.*PerBuffer<int64_t>::kAll[i], device);
  }
}

// A batch of steps that all want logits, filled up to one of the sizes that are recorded.
struct PaddedBatch {
  explicit PaddedBatch(const ForwardBatch& batch) : steps(PaddedSteps(batch.rows.num_sequences)) {
    const int32_t real = batch.rows.num_sequences;
    tokens.assign(batch.tokens.begin(), batch.tokens.end());
    slots.assign(batch.rows.slot, batch.rows.slot + real);
    first_position.assign(batch.first_position.begin(), batch.first_position.end());
    tokens.resize(steps, 0);
    slots.resize(steps, -1);
    first_position.resize(steps, 0);
    rows.resize(steps + 1);
    std::iota(rows.begin(), rows.end(), 0);
  }

  int32_t steps;
  std::vector<int32_t> tokens, slots, rows;
  std::vector<int64_t> first_position;
};

// What a pass does on the host between its ops cannot be recorded.
bool CanBeRecorded(const ModelConfig& config, const ForwardBatch& batch) {
  const int32_t steps = batch.rows.num_steps;
  return config.clusters() == 1 && !config.embedding.sinusoids && steps == batch.rows.num_rows() &&
         steps == std::ssize(batch.logit_rows);
}

// Has the pass point at the arrays of a batch, on the device if it runs there.
void PutBatch(std::span<const int32_t> tokens, std::span<const int32_t> row_begin, std::span<const int32_t> slots,
              std::span<const int64_t> first_position, std::span<const int32_t> logit_rows, Pass& pass) {
  const auto put = [&]<typename T>(std::span<const T> values) {
    return pass.on_device() ? pass.buffers.arrays.Put(values) : values.data();
  };
  pass.tokens = put(tokens);
  pass.rows.row_begin = put(row_begin);
  pass.rows.slot = put(slots);
  pass.first_position = put(first_position);
  pass.logit_rows = put(logit_rows);
  if (pass.on_device()) pass.buffers.arrays.Send(*pass.ctx.device);
}

// Room for the arrays of any pass over so many rows, the indices of a vocabulary in clusters included.
int64_t BatchBytes(const ModelConfig& config, int64_t rows) {
  return BatchArrays::BytesOf<int64_t>((8 + 4 * config.clusters()) * (rows + 4));
}

void RunRecorded(const ModelWeights& weights, const ForwardBatch& batch, Pass& pass, float* logits) {
  Buffers& buffers = pass.buffers;
  const PaddedBatch padded(batch);
  GrowBuffers(weights, padded.steps, pass.ctx.device, buffers);
  if (buffers.arrays.Reset(*pass.ctx.device, BatchBytes(weights.config, padded.steps))) buffers.recordings.clear();
  if (buffers.recorded_logits != logits || buffers.recorded_states != batch.states) buffers.recordings.clear();
  buffers.recorded_logits = logits;
  buffers.recorded_states = batch.states;
  pass.rows = {.num_sequences = padded.steps, .num_steps = padded.steps};
  pass.count = pass.logits_count = {.rows = padded.steps, .steps = padded.steps};
  const std::span<const int32_t> rows(padded.rows);
  PutBatch(padded.tokens, rows, padded.slots, padded.first_position, rows.first(padded.steps), pass);
  const auto found = buffers.recordings.find(padded.steps);
  const bool known = found != buffers.recordings.end();
  if (known && found->second != nullptr) {
    ++buffers.counts.recorded_passes;
    return pass.ctx.device->Run(*found->second);
  }
  ++buffers.counts.direct_passes;
  RunPass(weights, pass, logits);
  // After a pass as it is, so that what is made on first use is there.
  if (!known) buffers.recordings[padded.steps] = pass.ctx.device->Record([&] { RunPass(weights, pass, logits); });
}

void RunDirect(const ModelWeights& weights, const ForwardBatch& batch, Pass& pass, float* logits) {
  Buffers& buffers = pass.buffers;
  ++buffers.counts.direct_passes;
  const int32_t rows = batch.rows.num_rows();
  GrowBuffers(weights, rows, pass.ctx.device, buffers);
  pass.rows = batch.rows;
  pass.count = {.rows = rows, .steps = std::max(batch.rows.num_steps, 0)};
  const auto logit_steps = std::ranges::lower_bound(batch.logit_rows, pass.count.steps) - batch.logit_rows.begin();
  pass.logits_count = {.rows = static_cast<int32_t>(batch.logit_rows.size()),
                       .steps = static_cast<int32_t>(logit_steps)};
  if (pass.on_device() && buffers.arrays.Reset(*pass.ctx.device, BatchBytes(weights.config, rows))) {
    buffers.recordings.clear();
  }
  const auto sequences = static_cast<size_t>(batch.rows.num_sequences);
  PutBatch(batch.tokens, {batch.rows.row_begin, sequences + 1}, {batch.rows.slot, sequences}, batch.first_position,
           batch.logit_rows, pass);
  RunPass(weights, pass, logits);
}

}  // namespace

void Model::MakeWhole(const ExecContext& ctx, std::byte* states, int64_t state_stride, std::span<const int32_t> slots,
                      Workspace& workspace) const {
  if (weights_->slots.write_interval == 1 || slots.empty()) return;
  Buffers& buffers = *workspace.buffers_;
  const auto count = static_cast<int32_t>(slots.size());
  ForwardBatch batch;
  batch.states = states;
  batch.state_stride = state_stride;
  Pass pass = PassOf(*weights_, ctx, batch, buffers);
  pass.rows = {.num_sequences = count, .num_steps = 0};
  if (buffers.arrays.Reset(*ctx.device, BatchBytes(config(), count))) buffers.recordings.clear();
  const std::vector<int32_t> no_rows(slots.size() + 1, 0);
  PutBatch({}, no_rows, slots, {}, {}, pass);
  for (const Layer& layer : weights_->layers) FlushDeferred(pass, std::get<FastWeightLayer>(layer.mixer));
  pass.AdvanceReplays();
}

int64_t Model::WorkspaceBytes(int64_t rows) const {
  int64_t values = 2 * int64_t{weights_->config.vocabulary};  // as they are, and with biases and penalties
  const PerBuffer<int64_t> widths = WidthsOf(*weights_);
  for (const auto buffer : PerBuffer<int64_t>::kAll) values += widths.*buffer;
  return rows * values * int64_t{sizeof(float)};
}

void Model::Reserve(const ExecContext& ctx, Workspace& workspace, int64_t rows) const {
  GrowBuffers(*weights_, rows, ctx.device, *workspace.buffers_);
}

void Model::Forward(const ExecContext& ctx, const ForwardBatch& batch, Workspace& workspace, float* logits) const {
  PALIMPSEST_CHECK(ctx.device == device());
  if (batch.rows.num_rows() == 0) return;
  CheckBatch(batch, config(), ctx.device != nullptr);
  Pass pass = PassOf(*weights_, ctx, batch, *workspace.buffers_);
  if (ctx.device != nullptr && CanBeRecorded(config(), batch)) {
    RunRecorded(*weights_, batch, pass, logits);
  } else {
    RunDirect(*weights_, batch, pass, logits);
  }
}

void Model::FinishSampling(const ExecContext& ctx, Workspace& workspace, std::span<SampleRow> answers,
                           float* logits) const {
  FinishSample(ctx, answers, config().vocabulary);
  if (ctx.device != nullptr || config().clusters() == 1) return;  // nothing was left out
  const ForwardBatch none;
  SampleAgain(PassOf(*weights_, ctx, none, *workspace.buffers_), weights_->head, answers, logits);
}

}  // namespace palimpsest
