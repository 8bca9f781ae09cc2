// What is decided before anything runs: whether options and requests are ones that can be served, and how much fits.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "server/engine/memory_plan.h"
#include "server/engine/options.h"
#include "server/engine/request.h"
#include "server/model/model.h"
#include "server/session/state.h"

namespace palimpsest {

// INVALID_ARGUMENT: an option is out of range.
absl::Status CheckOptions(const EngineOptions& options);

// Rows of prompts in a batch: the option, or what suits where the model is.
int32_t PrefillBudget(const Model& model, const EngineOptions& options);

// Rows of a batch at most: a step of every slot, filled up, and the prompts' chunks, of which one may begin within the
// budget.
int32_t MaxRows(int32_t slots, int32_t prefill_budget);

// How many slots there will be. RESOURCE_EXHAUSTED: the memory that is free does not hold as many as were asked for.
absl::StatusOr<int32_t> ChooseSlots(const Model& model, const EngineOptions& options);

// What the model takes of the host's memory, as far as options say: its part of a memory plan. RESOURCE_EXHAUSTED as
// ChooseSlots, on a device.
absl::StatusOr<ModelMemory> MemoryOf(const std::string& id, const Model& model, const EngineOptions& options);

// Statuses of Engine::Submit that the request itself brings about: what the arithmetic would read or write out of
// bounds on, and a context that is empty, of another model, or longer than positions reach.
absl::Status CheckRequest(const EngineRequest& request, const StateFormat& format, int64_t max_context);

}  // namespace palimpsest
