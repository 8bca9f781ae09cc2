// A snapshot: what is accepted is what its state is written as. Each input is read as it is, and with the checksum that
// belongs to it, which no mutation would find.
#include <string>

#include "base/check.h"
#include "base/sha256.h"
#include "server/session/state.h"
#include "tests/fuzz/fuzz.h"

namespace palimpsest::fuzz {
namespace {

// That of server/session/testdata/snapshot_v1.bin.
StateFormat Format() {
  return {.model_fingerprint = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f",
          .layout_hash = 0x0123456789ABCDEF,
          .bytes = 128,
          .vocabulary = 1000};
}

void Read(const std::string& bytes) {
  const absl::StatusOr<StatePtr> state = ParseSnapshot(bytes, Format());
  if (!state.ok()) {
    PALIMPSEST_CHECK(absl::IsInvalidArgument(state.status()) || absl::IsDataLoss(state.status()) ||
                     absl::IsFailedPrecondition(state.status()));
    return;
  }
  const absl::StatusOr<std::string> written = SerializeSnapshot(**state);
  PALIMPSEST_CHECK(written.ok() && *written == bytes);
  PALIMPSEST_CHECK(SnapshotBytes(**state) == std::ssize(bytes) && std::ssize(bytes) <= MaxSnapshotBytes(Format()));
  PALIMPSEST_CHECK(StateDigest(**state).size() == 64);
  SequenceHead head = (*state)->head;
  head.Append(7);
  PALIMPSEST_CHECK(head.pending == 7 && head.position == (*state)->head.position + 1);
}

}  // namespace

void Run(std::string_view input) {
  std::string bytes(input);
  Read(bytes);
  if (bytes.size() < sizeof(Sha256Digest)) return;
  bytes.resize(bytes.size() - sizeof(Sha256Digest));
  bytes += BytesOf(Sha256Of(bytes));
  Read(bytes);
}

}  // namespace palimpsest::fuzz
