#include "server/session/state.h"

namespace palimpsest {
namespace {

// A head of 1 KiB, two names in two maps, and the rounding of the allocator.
constexpr int64_t kBesideState = 4096;

}  // namespace

int64_t ParkedBytes(int64_t state_bytes) { return AlignedBytes::MappedBytes(state_bytes) + kBesideState; }

void SequenceHead::Append(int32_t token) {
  const int64_t place = position % kPenaltyWindow;
  if (place == static_cast<int64_t>(recent.size())) {
    recent.push_back(token);
  } else {
    recent[place] = token;
  }
  pending = token;
  ++position;
}

}  // namespace palimpsest
