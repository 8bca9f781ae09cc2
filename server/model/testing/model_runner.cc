#include "server/model/testing/model_runner.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <numeric>

#include "base/check.h"
#include "kernels/common/aligned_buffer.h"
#include "kernels/common/device.h"
#include "server/model/padded_steps.h"

namespace palimpsest::testing {
namespace {

constexpr int64_t kChunk = 64;

}  // namespace

ModelRunner::ModelRunner(const Model& model, int32_t slots, int threads)
    : model_(model), pool_(threads), states_(slots * model.slot_bytes(), model.device()) {
  if (model.device() != nullptr) model.device()->FillWithZeros(states_.data(), states_.size());
}

std::vector<float> ModelRunner::Forward(std::span<const Piece> pieces) {
  std::vector<Part> parts, tails;
  int64_t rows = 0;
  for (const Piece& piece : pieces) {
    Part part{piece, rows};
    const int64_t length = std::ssize(piece.tokens);
    rows += length;
    if (model_.device() != nullptr && length > 1 && length % kChunk == 1) {
      Part tail = part;
      tail.row += length - 1;
      tail.piece.tokens = piece.tokens.last(1);
      tail.piece.first_position += length - 1;
      if (!piece.targets.empty()) {
        tail.piece.targets = piece.targets.last(1);
        part.piece.targets = piece.targets.first(static_cast<size_t>(length - 1));
      }
      part.piece.tokens = piece.tokens.first(static_cast<size_t>(length - 1));
      tails.push_back(tail);
    }
    parts.push_back(part);
  }
  std::vector<float> result(static_cast<size_t>(rows * model_.config().vocabulary),
                            std::numeric_limits<float>::quiet_NaN());
  Call(std::move(parts), result);
  Call(std::move(tails), result);
  return result;
}

void ModelRunner::Call(std::vector<Part> parts, std::vector<float>& result) {
  std::erase_if(parts, [](const Part& part) { return part.piece.tokens.empty(); });
  if (parts.empty()) return;
  Device* const device = model_.device();
  const auto is_step = [](const Part& part) { return part.piece.tokens.size() == 1; };
  if (device != nullptr) std::ranges::stable_partition(parts, is_step);
  std::vector<int32_t> tokens, row_begin = {0}, slots, targets;
  std::vector<int64_t> first_position;
  for (const Part& part : parts) {
    const Piece& piece = part.piece;
    tokens.insert(tokens.end(), piece.tokens.begin(), piece.tokens.end());
    targets.insert(targets.end(), piece.targets.begin(), piece.targets.end());
    row_begin.push_back(static_cast<int32_t>(tokens.size()));
    slots.push_back(piece.slot);
    first_position.push_back(piece.first_position);
  }
  std::vector<int32_t> rows(tokens.size());
  std::iota(rows.begin(), rows.end(), 0);
  ForwardBatch batch;
  batch.tokens = tokens;
  batch.rows = {.num_sequences = static_cast<int32_t>(parts.size()),
                .row_begin = row_begin.data(),
                .slot = slots.data(),
                .num_steps = static_cast<int32_t>(std::ranges::count_if(parts, is_step))};
  batch.states = states_.data();
  batch.state_stride = model_.slot_bytes();
  batch.first_position = first_position;
  batch.logit_rows = rows;
  batch.targets = targets;
  const int64_t vocabulary = model_.config().vocabulary;
  AlignedArray<float> logits(PaddedSteps(static_cast<int32_t>(rows.size())) * vocabulary, device);
  model_.Forward({.pool = &pool_, .device = device}, batch, workspace_, logits.data());
  std::vector<float> out(rows.size() * static_cast<size_t>(vocabulary));
  if (device != nullptr) {
    device->CopyToHost(out.data(), logits.data(), std::ssize(out) * int64_t{sizeof(float)});
    PALIMPSEST_CHECK(device->Synchronize().ok());
  } else {
    std::copy_n(logits.data(), out.size(), out.begin());
  }
  for (size_t i = 0; i < parts.size(); ++i) {
    const int64_t begin = row_begin[i] * vocabulary, end = row_begin[i + 1] * vocabulary;
    std::copy(out.begin() + begin, out.begin() + end, result.begin() + parts[i].row * vocabulary);
  }
}

std::vector<std::byte> ModelRunner::State(int32_t slot) {
  const int64_t bytes = model_.layout().bytes();
  std::vector<std::byte> state(static_cast<size_t>(bytes));
  const std::byte* const from = states_.data() + slot * model_.slot_bytes();
  if (model_.device() == nullptr) {
    std::memcpy(state.data(), from, state.size());
  } else {
    model_.MakeWhole({.pool = &pool_, .device = model_.device()}, states_.data(), model_.slot_bytes(), {&slot, 1},
                     workspace_);
    model_.device()->CopyToHost(state.data(), from, bytes);
    PALIMPSEST_CHECK(model_.device()->Synchronize().ok());
  }
  return state;
}

void ModelRunner::SetState(int32_t slot, std::span<const std::byte> state) {
  std::byte* const to = states_.data() + slot * model_.slot_bytes();
  if (model_.device() != nullptr) {
    model_.device()->CopyToDevice(to, state.data(), std::ssize(state));
    model_.device()->FillWithZeros(to + state.size(), model_.slot_bytes() - std::ssize(state));
  } else {
    std::memcpy(to, state.data(), state.size());
  }
}

}  // namespace palimpsest::testing
