#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <fstream>
#include <iterator>
#include <string>

#include "base/sha256.h"
#include "server/session/state.h"

namespace palimpsest {
namespace {

using ::testing::HasSubstr;

constexpr int64_t kFloats = 32;

StateFormat Format() {
  return {.model_fingerprint = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f",
          .layout_hash = 0x0123456789ABCDEF,
          .bytes = kFloats * 4,
          .vocabulary = 1000};
}

int32_t TokenAt(int64_t position) { return static_cast<int32_t>((7 * position + 3) % 1000); }

// The state in testdata/snapshot_v1.bin, if `position` is 300.
State MakeState(int64_t position, std::string undecoded = "\xE2\x82") {
  State state{.format = Format(), .head = {}, .data = AlignedBytes(Format().bytes)};
  for (int64_t p = 0; p < position; ++p) state.head.Append(TokenAt(p));
  state.head.undecoded = std::move(undecoded);
  for (int64_t i = 0; i < kFloats; ++i) {
    const float value = static_cast<float>(i) / 4 - 3;
    std::memcpy(state.data.data() + 4 * i, &value, 4);
  }
  return state;
}

std::string DataOf(const State& state) {
  return std::string(reinterpret_cast<const char*>(state.data.data()), static_cast<size_t>(state.data.size()));
}

// `snapshot` with `bytes` written at `offset` and the checksum made to match.
std::string Doctored(std::string snapshot, size_t offset, const std::string& bytes) {
  snapshot.replace(offset, bytes.size(), bytes);
  snapshot.resize(snapshot.size() - 32);
  return snapshot + BytesOf(Sha256Of(snapshot));
}

template <typename T>
std::string Raw(T value) {
  return std::string(reinterpret_cast<const char*>(&value), sizeof value);
}

std::string ReadFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return std::string(std::istreambuf_iterator<char>(file), {});
}

TEST(SequenceHead, RemembersTheLastTokensInARing) {
  SequenceHead head;
  EXPECT_EQ(head.pending, -1);
  for (int64_t p = 0; p < 600; ++p) {
    head.Append(TokenAt(p));
    ASSERT_EQ(head.position, p + 1);
    ASSERT_EQ(head.pending, TokenAt(p));
    ASSERT_EQ(std::ssize(head.recent), std::min<int64_t>(p + 1, SequenceHead::kPenaltyWindow));
    for (int64_t back = 0; back < std::ssize(head.recent); ++back) {
      ASSERT_EQ(head.recent[(p - back) % SequenceHead::kPenaltyWindow], TokenAt(p - back));
    }
  }
}

TEST(Snapshot, ComesBackAsItWasAtEveryFillOfTheWindow) {
  for (const int64_t position : {0, 1, 2, 255, 256, 257, 512, 1000}) {
    for (const std::string undecoded : {"", "\xC3", "\xE2\x82", "\xF0\x9F\x98"}) {
      const State state = MakeState(position, undecoded);
      const std::string bytes = *SerializeSnapshot(state);
      EXPECT_EQ(std::ssize(bytes), SnapshotBytes(state));
      EXPECT_LE(std::ssize(bytes), MaxSnapshotBytes(state.format));
      const auto parsed = ParseSnapshot(bytes, Format());
      ASSERT_TRUE(parsed.ok()) << parsed.status();
      EXPECT_EQ((*parsed)->format, state.format);
      EXPECT_EQ((*parsed)->head, state.head);
      EXPECT_EQ(DataOf(**parsed), DataOf(state));
      EXPECT_EQ(StateDigest(**parsed), StateDigest(state));
      EXPECT_EQ(*SerializeSnapshot(**parsed), bytes);
    }
  }
}

TEST(Snapshot, ReachesItsGreatestLengthAndNotMore) {
  EXPECT_EQ(SnapshotBytes(MakeState(256, "\xF0\x9F\x98")), MaxSnapshotBytes(Format()));
}

// The file was written by testdata/make_snapshot_v1.py, which shares no code with the server.
TEST(Snapshot, ReadsTheCommittedFileOfVersionOne) {
  const std::string bytes = ReadFile(PALIMPSEST_SOURCE_DIR "/server/session/testdata/snapshot_v1.bin");
  const auto parsed = ParseSnapshot(bytes, Format());
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  const State expected = MakeState(300);
  EXPECT_EQ((*parsed)->head, expected.head);
  EXPECT_EQ(DataOf(**parsed), DataOf(expected));
  EXPECT_EQ(*SerializeSnapshot(expected), bytes);
  EXPECT_EQ(StateDigest(expected), "2d8e7140e6f3756b561443cc2080e6243ecf2dd1555ca7542b3b6a32b3b7afce");
}

TEST(Snapshot, IsRefusedWithAnyBitFlipped) {
  const std::string bytes = *SerializeSnapshot(MakeState(5));
  for (size_t i = 0; i < bytes.size(); ++i) {
    for (int bit = 0; bit < 8; ++bit) {
      std::string damaged = bytes;
      damaged[i] = static_cast<char>(damaged[i] ^ (1 << bit));
      const auto parsed = ParseSnapshot(damaged, Format());
      ASSERT_FALSE(parsed.ok()) << "byte " << i << " bit " << bit;
      const absl::StatusCode expected = i < 12 ? absl::StatusCode::kInvalidArgument : absl::StatusCode::kDataLoss;
      ASSERT_EQ(parsed.status().code(), expected) << "byte " << i << " bit " << bit << ": " << parsed.status();
    }
  }
}

TEST(Snapshot, IsRefusedTruncatedAtEveryLengthAndWithMoreBytes) {
  const std::string bytes = *SerializeSnapshot(MakeState(300));
  for (size_t length = 0; length < bytes.size(); ++length) {
    const auto parsed = ParseSnapshot(std::string_view(bytes).substr(0, length), Format());
    ASSERT_EQ(parsed.status().code(), absl::StatusCode::kDataLoss) << length << ": " << parsed.status();
    ASSERT_THAT(parsed.status().message(), HasSubstr("truncated")) << length;
  }
  EXPECT_EQ(ParseSnapshot(bytes + '\0', Format()).status().code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(ParseSnapshot(bytes + '\0', Format()).status().message(), HasSubstr("too long"));
}

// Each row is a snapshot whose checksum matches.
TEST(Snapshot, SaysWhatIsWrongWithIt) {
  const std::string good = *SerializeSnapshot(MakeState(5));
  const size_t undecoded_at = 72 + 4 * 5;
  const size_t data_length_at = undecoded_at + 4 + 2;
  StateFormat other_model = Format();
  other_model.model_fingerprint[0] = 'f';
  StateFormat other_layout = Format();
  other_layout.layout_hash ^= 1;
  StateFormat other_size = Format();
  other_size.bytes += 64;
  StateFormat small_vocabulary = Format();
  small_vocabulary.vocabulary = TokenAt(4);

  const struct {
    const char* name;
    std::string bytes;
    StateFormat expected;
    absl::StatusCode code;
    const char* words;
  } kRows[] = {
      {"other file", "GGUF and more", Format(), absl::StatusCode::kInvalidArgument, "not a snapshot"},
      {"short other file", "x", Format(), absl::StatusCode::kInvalidArgument, "does not begin with PLMPSTAT"},
      {"nothing", "", Format(), absl::StatusCode::kDataLoss, "truncated: it has 0 bytes"},
      {"version 0", Doctored(good, 8, Raw<uint32_t>(0)), Format(), absl::StatusCode::kInvalidArgument, "version 0"},
      {"version 3", Doctored(good, 8, Raw<uint32_t>(3)), Format(), absl::StatusCode::kInvalidArgument,
       "version 3, this server reads versions 1 and 2"},
      {"version 2", Doctored(good, 8, Raw<uint32_t>(2)), Format(), absl::StatusCode::kDataLoss,
       "its format version is that of states that fill up with the context"},
      {"header length", Doctored(good, 12, Raw<uint32_t>(110)), Format(), absl::StatusCode::kDataLoss,
       "says its header has 110 bytes, it has 106"},
      {"model", good, other_model, absl::StatusCode::kFailedPrecondition, "of another model: its fingerprint is 0001"},
      {"layout", good, other_layout, absl::StatusCode::kFailedPrecondition, "another state layout: its hash is 0123"},
      {"size", good, other_size, absl::StatusCode::kFailedPrecondition, "its state has 128 bytes, this model's 192"},
      {"negative position", Doctored(good, 56, Raw<int64_t>(-1)), Format(), absl::StatusCode::kDataLoss,
       "position is -1"},
      {"huge position", Doctored(good, 56, Raw<int64_t>(INT64_MAX)), Format(), absl::StatusCode::kDataLoss,
       "position is 9223372036854775807"},
      {"position and recent", Doctored(good, 56, Raw<int64_t>(6)), Format(), absl::StatusCode::kDataLoss,
       "5 recent tokens at position 6, expected 6"},
      {"pending", Doctored(good, 64, Raw<int32_t>(8)), Format(), absl::StatusCode::kDataLoss,
       "the pending token is 8, expected 31"},
      {"no pending", Doctored(good, 64, Raw<int32_t>(-1)), Format(), absl::StatusCode::kDataLoss,
       "the pending token is -1"},
      {"many recent", Doctored(good, 68, Raw<uint32_t>(257)), Format(), absl::StatusCode::kDataLoss, "257 recent"},
      {"very many recent", Doctored(good, 68, Raw<uint32_t>(UINT32_MAX)), Format(), absl::StatusCode::kDataLoss,
       "4294967295 recent"},
      {"negative recent", Doctored(good, 72, Raw<int32_t>(-5)), Format(), absl::StatusCode::kDataLoss,
       "a recent token is -5"},
      {"recent outside", Doctored(good, 72, Raw<int32_t>(1000)), Format(), absl::StatusCode::kDataLoss,
       "a recent token is 1000, expected 0 to 999"},
      {"pending outside", good, small_vocabulary, absl::StatusCode::kDataLoss, "a recent token is 31"},
      {"many undecoded", Doctored(good, undecoded_at, Raw<uint32_t>(4)), Format(), absl::StatusCode::kDataLoss,
       "4 undecoded bytes"},
      {"whole character", Doctored(good, undecoded_at + 4, "ab"), Format(), absl::StatusCode::kDataLoss,
       "not the beginning of a character"},
      {"overlong character", Doctored(good, undecoded_at + 4, "\xE0\x80"), Format(), absl::StatusCode::kDataLoss,
       "not the beginning of a character"},
      {"surrogate", Doctored(good, undecoded_at + 4, "\xED\xA0"), Format(), absl::StatusCode::kDataLoss,
       "not the beginning of a character"},
      {"data length", Doctored(good, data_length_at, Raw<uint64_t>(129)), Format(), absl::StatusCode::kDataLoss,
       "truncated: it has 266 bytes; its header says 106 of header, 129 of state and 32 of checksum"},
      {"short data length", Doctored(good, data_length_at, Raw<uint64_t>(127)), Format(), absl::StatusCode::kDataLoss,
       "too long: it has 266 bytes; its header says 106 of header, 127 of state"},
      {"huge data length", Doctored(good, data_length_at, Raw<uint64_t>(UINT64_MAX)), Format(),
       absl::StatusCode::kDataLoss, "18446744073709551615 of state"},
  };
  for (const auto& row : kRows) {
    const auto parsed = ParseSnapshot(row.bytes, row.expected);
    EXPECT_EQ(parsed.status().code(), row.code) << row.name << ": " << parsed.status();
    EXPECT_THAT(parsed.status().message(), HasSubstr(row.words)) << row.name;
  }
}

TEST(StateDigest, ChangesWithEveryPartOfTheState) {
  const std::string digest = StateDigest(MakeState(300));
  EXPECT_EQ(StateDigest(MakeState(300)), digest);
  EXPECT_NE(StateDigest(MakeState(301)), digest);
  EXPECT_NE(StateDigest(MakeState(300, "")), digest);
  State other = MakeState(300);
  other.data.data()[127] ^= std::byte{1};
  EXPECT_NE(StateDigest(other), digest);
  other = MakeState(300);
  other.head.recent[100] ^= 1;
  EXPECT_NE(StateDigest(other), digest);
}

// A layout of two pieces: 64 bytes that are always used, and a window of four positions in two blocks.
StateFormat WindowFormat() {
  StateFormat format = Format();
  format.positioned = {{.offset = 64, .bytes = 64, .blocks = 2, .positions = 4}};
  return format;
}

State WindowState(int64_t position) {
  const State whole = MakeState(position, "");
  State state{.format = WindowFormat(), .head = whole.head, .data = {}};
  state.data = AlignedBytes(state.format.UsedBytes(whole.head.processed()));
  std::byte* to = state.data.data();
  for (const ByteRange& range : state.format.UsedRanges(whole.head.processed())) {
    std::memcpy(to, whole.data.data() + range.offset, static_cast<size_t>(range.bytes));
    to += range.bytes;
  }
  return state;
}

TEST(Snapshot, OfAWindowHasTheEntriesThatAreUsed) {
  for (const int64_t position : {0, 1, 2, 4, 5, 300}) {
    const State state = WindowState(position);
    const std::string bytes = *SerializeSnapshot(state);
    EXPECT_EQ(bytes[8], 2) << "format version";
    EXPECT_EQ(std::ssize(bytes), SnapshotBytes(state));
    EXPECT_LE(std::ssize(bytes), MaxSnapshotBytes(WindowFormat()));
    const absl::StatusOr<StatePtr> parsed = ParseSnapshot(bytes, WindowFormat());
    ASSERT_TRUE(parsed.ok()) << parsed.status();
    EXPECT_EQ(DataOf(**parsed), DataOf(state));
    EXPECT_EQ(StateDigest(**parsed), StateDigest(state));
  }
  EXPECT_EQ(std::ssize(*SerializeSnapshot(WindowState(3))) - std::ssize(*SerializeSnapshot(WindowState(2))), 16 + 4);
}

// What servers wrote before there was another: all of the state, whether used or not.
TEST(Snapshot, OfVersionOneIsReadOfAWindow) {
  for (const int64_t position : {0, 3, 300}) {
    const absl::StatusOr<StatePtr> parsed = ParseSnapshot(*SerializeSnapshot(MakeState(position, "")), WindowFormat());
    ASSERT_TRUE(parsed.ok()) << parsed.status();
    EXPECT_EQ(DataOf(**parsed), DataOf(WindowState(position)));
  }
}

TEST(Snapshot, OfAWindowIsRefusedWithMoreOrLessThanItsPositionHas) {
  StateFormat narrow = WindowFormat();
  narrow.positioned[0].positions = 2;
  const absl::StatusOr<StatePtr> refused = ParseSnapshot(*SerializeSnapshot(WindowState(3)), narrow);
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(refused.status().message()),
              HasSubstr("its state has 96 bytes, this model's 128 at position 3"));
}

}  // namespace
}  // namespace palimpsest
