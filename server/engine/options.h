// What an engine is made with.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "absl/time/time.h"
#include "server/engine/waiting_room.h"

namespace palimpsest {

struct EngineOptions {
  // Threads of the arithmetic, the engine's own included. 0: one per processor.
  int32_t threads = 0;
  // Sequences that run at once. Each costs StateLayout::bytes() from the start on. More raises throughput until the
  // arithmetic is saturated, and with it every caller's time between tokens. 0: on a device, as many as its memory
  // holds (at most 4096); else 64.
  int32_t slots = 64;
  // Of a device's memory, the part that this server may take in all, weights included.
  double device_memory_fraction = 0.9;
  // Requests that wait for a slot before new ones are refused.
  int32_t max_queue = 256;
  // Prompt tokens taken into one iteration beside the decoding sequences, in whole chunks. More shortens the time to
  // the first token under load and lengthens the others' time between tokens. At least one chunk is always taken. While
  // a text is scored, each of these rows costs memory for its logits. 0: 256, or more on a device, whose weights are
  // read once for all of them: 16 for each of its multiprocessors.
  int32_t prefill_budget = 0;
  // Generated tokens that may wait for a slow reader before its sequence is paused.
  int32_t max_undelivered_tokens = 256;
  // How long a sequence may be left out because its reader takes nothing; then its request ends. Infinite: for ever.
  absl::Duration max_stall = absl::Seconds(60);
  // What an owner may use; null: everybody as much as the others. Thread-safe, quick, and never waits for the engine.
  std::function<EngineShare(const std::string& owner)> shares = nullptr;
};

}  // namespace palimpsest
