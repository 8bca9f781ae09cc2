#include "server/session/state.h"

namespace palimpsest {

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
