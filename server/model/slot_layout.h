// How a slot is laid out: a state, and behind it what its fast weights may lack (the replay form).
#pragma once

#include <cstdint>

namespace palimpsest {

struct SlotLayout {
  int64_t bytes = 0;           // a multiple of 64
  int32_t write_interval = 1;  // 1: nothing is deferred
  int64_t deferred = 0;        // of how many entries the state lacks; one number for all layers
};

}  // namespace palimpsest
