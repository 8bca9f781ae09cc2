// The state of a sequence as a value, and its serialised form, the snapshot.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/common/aligned_buffer.h"
#include "kernels/common/used_ranges.h"

namespace palimpsest {

// What a state must match: which weights made it and how it is laid out.
struct StateFormat {
  std::string model_fingerprint;  // SHA-256, 64 hexadecimal digits
  uint64_t layout_hash = 0;
  int64_t bytes = 0;
  int32_t vocabulary = 0;                        // token ids in a head are below it
  std::vector<PositionedPiece> positioned = {};  // pieces that fill up with the context

  // What a state is moved, parked and sent as, once so many tokens have been processed.
  std::vector<ByteRange> UsedRanges(int64_t tokens) const { return palimpsest::UsedRanges(bytes, positioned, tokens); }
  int64_t UsedBytes(int64_t tokens) const { return palimpsest::UsedBytes(bytes, positioned, tokens); }

  bool operator==(const StateFormat&) const = default;
};

// The part of a state that the engine keeps beside the model's arrays. All of bounded size.
struct SequenceHead {
  // Tokens that penalties look at.
  static constexpr int32_t kPenaltyWindow = 256;

  // Number of tokens of the context: those taken in by the model and the pending one.
  int64_t position = 0;
  // Last token of the context. It is part of the text but the model has not taken it in yet: the next call begins with
  // it, because its logits are what the next token is drawn from. -1 when position is 0.
  int32_t pending = -1;
  // The last tokens of the context, in a ring: the token at position p is recent[p % kPenaltyWindow].
  std::vector<int32_t> recent;
  // Last bytes of the text, if they are the beginning of a character only; at most 3. A prompt drops them.
  std::string undecoded;

  // Tokens that the model has processed: all but the pending one.
  int64_t processed() const { return position > 0 ? position - 1 : 0; }
  // Appends to the context: position, pending and recent.
  void Append(int32_t token);
  bool operator==(const SequenceHead&) const = default;
};

// A state at rest. Never changed once shared: sessions, forks and snapshots hold the same one, and a sequence that goes
// on from it works on a copy in a slot.
struct State {
  StateFormat format;
  SequenceHead head;
  AlignedBytes data;  // the used ranges of format, one after the other
};
using StatePtr = std::shared_ptr<const State>;

// Memory that a state of so many bytes takes while it is parked: its pages, and what is beside them (the head, and the
// names and maps by which it is found).
int64_t ParkedBytes(int64_t state_bytes);

// SHA-256, in hexadecimal, of head and data. Equal digests mean equal states.
std::string StateDigest(const State& state);

// The snapshot's bytes: docs/state.md. RESOURCE_EXHAUSTED: the system has no memory left for them.
absl::StatusOr<std::string> SerializeSnapshot(const State& state);

// Bytes that SerializeSnapshot gives for this state.
int64_t SnapshotBytes(const State& state);

// Bytes of a snapshot of such a state, at most: what an upload may be long.
int64_t MaxSnapshotBytes(const StateFormat& format);

// Any bytes in. INVALID_ARGUMENT: not a snapshot, or a version not known here.  DATA_LOSS: truncated, too long, the
// checksum does not match, or what it says contradicts itself.  FAILED_PRECONDITION: of another model or layout than
// `expected`; the message says which.  RESOURCE_EXHAUSTED: the system has no memory left for it.
absl::StatusOr<StatePtr> ParseSnapshot(std::string_view bytes, const StateFormat& expected);

}  // namespace palimpsest
