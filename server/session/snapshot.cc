// Snapshots, little endian, nothing padded:
//
//   bytes      type      what
//   0          char[8]   magic "PLMPSTAT"
//   8          u32       version, 1 or 2
//   12         u32       header length: where the data begins, counted from the magic
//   16         byte[32]  fingerprint of the model: SHA-256 of its configuration and weights
//   48         u64       hash of the state layout
//   56         i64       position: number of tokens of the context, the pending one included
//   64         i32       pending token; -1 at position 0
//   68         u32       n, number of recent tokens: min(position, 256)
//   72         i32[n]    recent tokens, a ring: the token at position p is the entry p mod 256
//   72 + 4n    u32       u, number of undecoded bytes: 0 to 3
//   76 + 4n    byte[u]   undecoded bytes: the beginning of a UTF-8 character
//   76+4n+u    u64       d, number of bytes of the data
//   84+4n+u    byte[d]   data: the state's arrays as the layout places them
//   84+4n+u+d  byte[32]  SHA-256 of all that comes before
//
// Version 2 is that of layouts with pieces that fill up with the context (windows of attention): its data are the used
// ranges alone (kernels/common/used_ranges.h). Version 1 has the state as a whole; it is what other layouts are written
// as, and is read of all. A reader refuses any other version; a later one may change anything after the version field.

#include <bit>
#include <cstring>
#include <memory>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/sha256.h"
#include "base/status_macros.h"
#include "server/session/no_memory.h"
#include "server/session/state.h"

namespace palimpsest {
namespace {

static_assert(std::endian::native == std::endian::little, "snapshots are little endian");

constexpr char kMagicChars[] = "PLMPSTAT";
constexpr std::string_view kMagic = kMagicChars;
constexpr uint32_t kWhole = 1, kUsedRanges = 2;  // versions
constexpr int64_t kFingerprintBytes = 32;
constexpr int64_t kChecksumBytes = 32;
constexpr int64_t kMaxUndecoded = 3;
constexpr int64_t kVersionEnd = 12;                 // magic and version
constexpr int64_t kFixedHeaderBytes = 84;           // without recent tokens and undecoded bytes
constexpr int64_t kMaxPosition = int64_t{1} << 62;  // appending never overflows

// Abseil's string_view need not be the standard one.
std::string Hex(std::string_view bytes) {
  return absl::BytesToHexString(absl::string_view(bytes.data(), bytes.size()));
}

template <typename T>
void Put(std::string& out, T value) {
  out.append(reinterpret_cast<const char*>(&value), sizeof value);
}

// From position to undecoded bytes.
void PutHead(std::string& out, const SequenceHead& head) {
  Put<int64_t>(out, head.position);
  Put<int32_t>(out, head.pending);
  Put<uint32_t>(out, static_cast<uint32_t>(head.recent.size()));
  for (const int32_t id : head.recent) Put<int32_t>(out, id);
  Put<uint32_t>(out, static_cast<uint32_t>(head.undecoded.size()));
  out.append(head.undecoded);
}

int64_t HeaderBytes(const SequenceHead& head) {
  return kFixedHeaderBytes + 4 * static_cast<int64_t>(head.recent.size()) + static_cast<int64_t>(head.undecoded.size());
}

// Reads fields one after the other. Once one does not fit, `ok` is false and what is read is zero.
class Reader {
 public:
  explicit Reader(std::string_view bytes) : bytes_(bytes) {}

  bool ok() const { return ok_; }
  template <typename T>
  T Get() {
    T value{};
    const std::string_view raw = GetBytes(sizeof value);
    if (ok_) std::memcpy(&value, raw.data(), sizeof value);
    return value;
  }
  std::string_view GetBytes(size_t count) {
    ok_ = ok_ && count <= bytes_.size();
    if (!ok_) return {};
    const std::string_view taken = bytes_.substr(0, count);
    bytes_.remove_prefix(count);
    return taken;
  }

 private:
  std::string_view bytes_;
  bool ok_ = true;
};

// True if `bytes` is empty or the beginning, but not all, of one UTF-8 character.
bool IsIncompleteCharacter(std::string_view bytes) {
  if (bytes.empty()) return true;
  const auto at = [&](size_t i) { return static_cast<uint8_t>(bytes[i]); };
  const uint8_t lead = at(0);
  const size_t length = lead >= 0xC2 && lead <= 0xDF   ? 2
                        : lead >= 0xE0 && lead <= 0xEF ? 3
                        : lead >= 0xF0 && lead <= 0xF4 ? 4
                                                       : 0;
  if (bytes.size() >= length) return false;
  for (size_t i = 1; i < bytes.size(); ++i) {
    // The second byte of some leads is bounded further: no overlong forms, no surrogates, nothing above U+10FFFF.
    const uint8_t low = i > 1 ? 0x80 : lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;
    const uint8_t high = i > 1 ? 0xBF : lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
    if (at(i) < low || at(i) > high) return false;
  }
  return true;
}

absl::Status CheckHead(const SequenceHead& head, int32_t vocabulary) {
  const auto contradiction = [](auto... parts) {
    return absl::DataLossError(absl::StrCat("snapshot contradicts itself: ", parts...));
  };
  if (head.position < 0 || head.position > kMaxPosition) {
    return contradiction("position is ", head.position, ", expected 0 to ", kMaxPosition);
  }
  const int64_t expected_recent = std::min<int64_t>(head.position, SequenceHead::kPenaltyWindow);
  if (static_cast<int64_t>(head.recent.size()) != expected_recent) {
    return contradiction("it has ", head.recent.size(), " recent tokens at position ", head.position, ", expected ",
                         expected_recent);
  }
  for (const int32_t id : head.recent) {
    if (id < 0 || id >= vocabulary) {
      return contradiction("a recent token is ", id, ", expected 0 to ", vocabulary - 1);
    }
  }
  const int32_t last = head.position == 0 ? -1 : head.recent[(head.position - 1) % SequenceHead::kPenaltyWindow];
  if (head.pending != last) {
    return contradiction("the pending token is ", head.pending, ", expected ", last, ", the last recent one");
  }
  if (!IsIncompleteCharacter(head.undecoded)) {
    return contradiction("its undecoded bytes are not the beginning of a character");
  }
  return absl::OkStatus();
}

std::string_view AsView(const AlignedBytes& bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), static_cast<size_t>(bytes.size())};
}

std::string Serialized(const State& state) {
  const std::string fingerprint = absl::HexStringToBytes(state.format.model_fingerprint);
  PALIMPSEST_CHECK(fingerprint.size() == kFingerprintBytes &&
                   state.data.size() == state.format.UsedBytes(state.head.processed()));
  std::string out;
  out.reserve(static_cast<size_t>(SnapshotBytes(state)));
  out.append(kMagic);
  Put<uint32_t>(out, state.format.positioned.empty() ? kWhole : kUsedRanges);
  Put<uint32_t>(out, static_cast<uint32_t>(HeaderBytes(state.head)));
  out.append(fingerprint);
  Put<uint64_t>(out, state.format.layout_hash);
  PutHead(out, state.head);
  Put<uint64_t>(out, static_cast<uint64_t>(state.data.size()));
  out.append(AsView(state.data));
  out.append(BytesOf(Sha256Of(out)));
  return out;
}

absl::StatusOr<StatePtr> Parse(std::string_view bytes, const StateFormat& expected) {
  if (bytes.substr(0, kMagic.size()) != kMagic.substr(0, bytes.size())) {
    return absl::InvalidArgumentError(absl::StrCat("not a snapshot: it does not begin with ", kMagicChars));
  }
  const auto truncated = [&] {
    return absl::DataLossError(absl::StrCat("snapshot is truncated: it has ", bytes.size(), " bytes only"));
  };
  if (bytes.size() < kVersionEnd) return truncated();
  Reader reader(bytes);
  reader.GetBytes(kMagic.size());
  const auto version = reader.Get<uint32_t>();
  if (version != kWhole && version != kUsedRanges) {
    return absl::InvalidArgumentError(absl::StrCat("snapshot has format version ", version,
                                                   ", this server reads versions ", kWhole, " and ", kUsedRanges));
  }

  auto state = std::make_shared<State>();
  const auto header_bytes = reader.Get<uint32_t>();
  const std::string_view fingerprint = reader.GetBytes(kFingerprintBytes);
  state->format = {.model_fingerprint = Hex(fingerprint), .layout_hash = reader.Get<uint64_t>()};
  SequenceHead& head = state->head;
  head.position = reader.Get<int64_t>();
  head.pending = reader.Get<int32_t>();
  const auto recent = reader.Get<uint32_t>();
  if (recent > SequenceHead::kPenaltyWindow) {
    return absl::DataLossError(absl::StrCat("snapshot is damaged: it says it has ", recent, " recent tokens, at most ",
                                            SequenceHead::kPenaltyWindow, " are possible"));
  }
  for (uint32_t i = 0; i < recent; ++i) head.recent.push_back(reader.Get<int32_t>());
  const auto undecoded = reader.Get<uint32_t>();
  if (undecoded > kMaxUndecoded) {
    return absl::DataLossError(absl::StrCat("snapshot is damaged: it says it has ", undecoded,
                                            " undecoded bytes, at most ", kMaxUndecoded, " are possible"));
  }
  head.undecoded = std::string(reader.GetBytes(undecoded));
  const auto data_bytes = reader.Get<uint64_t>();
  if (!reader.ok()) return truncated();
  if (header_bytes != HeaderBytes(head)) {
    return absl::DataLossError(absl::StrCat("snapshot is damaged: it says its header has ", header_bytes,
                                            " bytes, it has ", HeaderBytes(head)));
  }
  // Compared this way around so that no length from the file can overflow.
  const int64_t rest = static_cast<int64_t>(bytes.size()) - header_bytes - kChecksumBytes;
  if (rest < 0 || data_bytes != static_cast<uint64_t>(rest)) {
    const bool truncated_data = rest < 0 || data_bytes > static_cast<uint64_t>(rest);
    return absl::DataLossError(absl::StrCat("snapshot is ", truncated_data ? "truncated" : "too long", ": it has ",
                                            bytes.size(), " bytes; its header says ", header_bytes, " of header, ",
                                            data_bytes, " of state and ", kChecksumBytes, " of checksum"));
  }
  const std::string_view covered = bytes.substr(0, bytes.size() - kChecksumBytes);
  if (BytesOf(Sha256Of(covered)) != bytes.substr(covered.size())) {
    return absl::DataLossError("snapshot is damaged: its checksum does not match its bytes; send it again");
  }

  if (state->format.model_fingerprint != absl::AsciiStrToLower(expected.model_fingerprint)) {
    return absl::FailedPreconditionError(absl::StrCat("snapshot is of another model: its fingerprint is ",
                                                      state->format.model_fingerprint, ", this model's is ",
                                                      expected.model_fingerprint));
  }
  if (state->format.layout_hash != expected.layout_hash) {
    return absl::FailedPreconditionError(absl::StrCat(
        "snapshot has another state layout: its hash is ", absl::Hex(state->format.layout_hash, absl::kZeroPad16),
        ", this server's is ", absl::Hex(expected.layout_hash, absl::kZeroPad16),
        "; of the same model, it was made with another --state_dtype, which this server would need, too"));
  }
  if (version == kUsedRanges && expected.positioned.empty()) {
    return absl::DataLossError(
        "snapshot contradicts itself: its format version is that of states that fill up with the context, which this "
        "model's do not");
  }
  PALIMPSEST_RETURN_IF_ERROR(CheckHead(head, expected.vocabulary));
  const int64_t used = expected.UsedBytes(head.processed()), whole = version == kWhole ? expected.bytes : used;
  if (rest != whole) {
    return absl::FailedPreconditionError(absl::StrCat("snapshot has another state layout: its state has ", rest,
                                                      " bytes, this model's ", whole, " at position ", head.position));
  }
  state->format = expected;
  state->data = AlignedBytes(used);
  const char* const data = bytes.data() + header_bytes;
  if (version == kUsedRanges && used > 0) std::memcpy(state->data.data(), data, static_cast<size_t>(used));
  std::byte* to = state->data.data();
  for (const ByteRange& range : expected.UsedRanges(head.processed())) {
    if (version == kUsedRanges) break;
    std::memcpy(to, data + range.offset, static_cast<size_t>(range.bytes));
    to += range.bytes;
  }
  return state;
}

}  // namespace

std::string StateDigest(const State& state) {
  std::string head;
  PutHead(head, state.head);
  Sha256 hash;
  hash.Add(head);
  hash.Add(state.data.data(), state.data.size());
  return Hex(BytesOf(hash.Finish()));
}

int64_t SnapshotBytes(const State& state) { return HeaderBytes(state.head) + state.data.size() + kChecksumBytes; }

int64_t MaxSnapshotBytes(const StateFormat& format) {
  return kFixedHeaderBytes + 4 * SequenceHead::kPenaltyWindow + kMaxUndecoded + format.bytes + kChecksumBytes;
}

absl::StatusOr<std::string> SerializeSnapshot(const State& state) {
  return OrNoMemory("a snapshot", [&]() -> absl::StatusOr<std::string> { return Serialized(state); });
}

absl::StatusOr<StatePtr> ParseSnapshot(std::string_view bytes, const StateFormat& expected) {
  return OrNoMemory("a state", [&] { return Parse(bytes, expected); });
}

}  // namespace palimpsest
