#include "server/engine/admission.h"

#include <algorithm>
#include <optional>

#include "absl/strings/str_cat.h"
#include "base/host/available_memory.h"
#include "base/status_macros.h"
#include "kernels/common/device.h"
#include "server/engine/scheduler.h"
#include "server/model/padded_steps.h"
#include "server/session/slot_pool.h"

namespace palimpsest {
namespace {

constexpr int32_t kDefaultSlots = 64;
constexpr int32_t kDefaultPrefillBudget = 256;
// Of a 1.3B shape on an H100 with its 132, 512 rows take 2.0 ms and 8192 take 20 (bench/results): some 2000 get nine
// tenths of the latter's rate, and hold up those that decode for 6 ms.
constexpr int32_t kPromptRowsPerMultiprocessor = 16;
// Of the logits of the row that it samples, which a thread keeps: adjusted, in order, and as probabilities.
constexpr int64_t kRowCopies = 8;
constexpr int32_t kMostSlotsUnasked = 4096;

// Whether the positions that the model was trained with reach as far as the request goes.
absl::Status CheckContext(const EngineRequest& request, int64_t most) {
  if (most == 0) return absl::OkStatus();
  const int64_t before = request.initial == nullptr ? 0 : request.initial->head.position;
  const int64_t after = before + std::ssize(request.prompt);
  const bool generates = request.kind == EngineRequest::Kind::kGenerate && request.max_tokens > 0;
  if (after < most || (after == most && !generates)) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrCat("the model was trained with positions on segments of ", most - 1,
                   " tokens, so a context holds at most ", most, ": this one has ", before, " and the prompt ",
                   request.prompt.size(), generates && after == most ? ", which leaves no room for a reply" : "",
                   "; start a new context with a shorter prompt, or score in segments or with a sliding window"));
}

}  // namespace

absl::Status CheckOptions(const EngineOptions& options) {
  const struct {
    const char* name;
    int32_t value;
    int32_t least;
    int32_t most;
  } kBounds[] = {
      {"threads", options.threads, 0, 4096},
      {"slots", options.slots, 0, 1 << 20},
      {"max_queue", options.max_queue, 0, 1 << 24},
      {"prefill_budget", options.prefill_budget, 0, 1 << 20},
      {"max_undelivered_tokens", options.max_undelivered_tokens, 1, 1 << 24},
  };
  for (const auto& bound : kBounds) {
    if (bound.value >= bound.least && bound.value <= bound.most) continue;
    return absl::InvalidArgumentError(
        absl::StrCat(bound.name, " is ", bound.value, ", expected ", bound.least, " to ", bound.most));
  }
  if (options.max_stall <= absl::ZeroDuration()) {
    return absl::InvalidArgumentError(
        absl::StrCat("max_stall is ", absl::FormatDuration(options.max_stall), ", expected more than 0"));
  }
  if (!(options.device_memory_fraction > 0.0 && options.device_memory_fraction <= 1.0)) {
    return absl::InvalidArgumentError(absl::StrCat("device_memory_fraction is ", options.device_memory_fraction,
                                                   ", expected more than 0, at most 1"));
  }
  return absl::OkStatus();
}

int32_t PrefillBudget(const Model& model, const EngineOptions& options) {
  if (options.prefill_budget > 0) return options.prefill_budget;
  if (model.device() == nullptr) return kDefaultPrefillBudget;
  const int32_t chunks = model.device()->info().multiprocessors * kPromptRowsPerMultiprocessor / kChunk;
  return std::max(chunks * kChunk, kDefaultPrefillBudget);
}

int32_t MaxRows(int32_t slots, int32_t prefill_budget) { return PaddedSteps(slots) + std::max(prefill_budget, kChunk); }

absl::StatusOr<int32_t> ChooseSlots(const Model& model, const EngineOptions& options) {
  const int64_t state_bytes = std::max<int64_t>(model.slot_bytes(), 1);
  if (model.device() == nullptr) {
    const int32_t slots = options.slots > 0 ? options.slots : kDefaultSlots;
    const std::optional<int64_t> available = AvailableMemory();
    if (!available || slots * state_bytes <= *available) return slots;
    return absl::ResourceExhaustedError(absl::StrCat(slots, " slots of ", state_bytes, " bytes need ",
                                                     slots * state_bytes, " bytes of memory, ", *available,
                                                     " are available; use fewer slots"));
  }
  const int64_t total = model.device()->info().total_bytes, free = model.device()->FreeBytes();
  const auto allowed = static_cast<int64_t>(static_cast<double>(total) * options.device_memory_fraction);
  const int64_t available = std::max<int64_t>(0, allowed - (total - free));
  const int32_t budget = PrefillBudget(model, options);
  const auto bytes = [&](int32_t slots) { return slots * state_bytes + model.WorkspaceBytes(MaxRows(slots, budget)); };
  if (options.slots > 0) {
    if (bytes(options.slots) <= available) return options.slots;
    return absl::ResourceExhaustedError(absl::StrCat(
        options.slots, " slots of ", state_bytes, " bytes, and what their batches need, take ", bytes(options.slots),
        " bytes of device memory, ", available, " are available (", options.device_memory_fraction, " of ", total,
        ", less what is in use); use fewer slots, or a larger part of the memory"));
  }
  int32_t slots = 0;
  for (int32_t more = kMostSlotsUnasked; more > 0; more /= 2) {
    if (slots + more <= kMostSlotsUnasked && bytes(slots + more) <= available) slots += more;
  }
  if (slots > 0) return slots;
  return absl::ResourceExhaustedError(
      absl::StrCat("not one slot of ", state_bytes, " bytes fits the device: ", available,
                   " bytes of its memory are available, and with what a batch needs it takes ", bytes(1)));
}

absl::StatusOr<ModelMemory> MemoryOf(const std::string& id, const Model& model, const EngineOptions& options) {
  StateFormat format;
  format.bytes = model.layout().bytes();
  ModelMemory memory{.id = id,
                     .slots = options.slots > 0 ? options.slots : kDefaultSlots,
                     .parked_bytes = ParkedBytes(format.bytes),
                     .snapshot_bytes = MaxSnapshotBytes(format)};
  if (model.device() != nullptr) {
    PALIMPSEST_ASSIGN_OR_RETURN(memory.slots, ChooseSlots(model, options));
    memory.batch_bytes = SlotPool::StagingBytes(model.slot_bytes());
    return memory;
  }
  memory.weight_bytes = model.weight_bytes();
  memory.slot_bytes = model.slot_bytes();
  // Where a device copies all rows' logits to sample them with a bias, a thread of the processor copies one row's.
  const int64_t rows = MaxRows(memory.slots, PrefillBudget(model, options));
  const int64_t row_bytes = int64_t{4} * model.config().vocabulary;
  memory.batch_bytes = model.WorkspaceBytes(rows) - rows * row_bytes + options.threads * kRowCopies * row_bytes;
  return memory;
}

absl::Status CheckRequest(const EngineRequest& request, const StateFormat& format, int64_t max_context) {
  const auto check_id = [&](const char* what, int64_t index, int32_t id) -> absl::Status {
    if (id >= 0 && id < format.vocabulary) return absl::OkStatus();
    return absl::InvalidArgumentError(
        absl::StrCat(what, "[", index, "] is token id ", id, ", the vocabulary has 0 to ", format.vocabulary - 1));
  };
  for (int64_t i = 0; i < std::ssize(request.prompt); ++i) {
    PALIMPSEST_RETURN_IF_ERROR(check_id("prompt", i, request.prompt[i]));
  }
  for (int64_t i = 0; i < std::ssize(request.sampling.logit_bias); ++i) {
    const int32_t id = request.sampling.logit_bias[i].first;
    PALIMPSEST_RETURN_IF_ERROR(check_id("logit_bias", i, id));
  }
  if (request.initial != nullptr) {
    const StateFormat& given = request.initial->format;
    if (given != format || request.initial->data.size() != format.UsedBytes(request.initial->head.processed())) {
      return absl::FailedPreconditionError(absl::StrCat(
          "the state is of another model or layout: it is of model ", given.model_fingerprint, " and has ",
          request.initial->data.size(), " bytes, this model is ", format.model_fingerprint, " and its states have ",
          format.UsedBytes(request.initial->head.processed()),
          "; of the same model, it was made with another --state_dtype, which this server would need, too"));
    }
    const SequenceHead& head = request.initial->head;
    for (int64_t i = 0; i < std::ssize(head.recent); ++i) {
      PALIMPSEST_RETURN_IF_ERROR(check_id("state.recent", i, head.recent[i]));
    }
    if (head.position > 0) {
      PALIMPSEST_RETURN_IF_ERROR(check_id("state.pending", 0, head.pending));
    }
  }
  const bool empty = request.prompt.empty() && (request.initial == nullptr || request.initial->head.position == 0);
  if (empty && request.kind == EngineRequest::Kind::kGenerate && request.max_tokens > 0) {
    return absl::FailedPreconditionError("there is nothing to continue from: the context is empty; give a prompt");
  }
  return CheckContext(request, max_context);
}

}  // namespace palimpsest
