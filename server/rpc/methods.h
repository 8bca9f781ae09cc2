// The methods of the API, a row for each: its name, how much may be asked of it in one message, and whom it is for.
#pragma once

#include <algorithm>
#include <cstdint>

#include "server/auth/identity.h"
#include "server/rpc/limits.h"
#include "server/rpc/wire.h"

namespace palimpsest {

enum class MessageSize : uint8_t {
  kSmall,  // names, numbers, a few strings
  kFork,   // ids of up to 1024 children
  kText,   // a prompt's text
  kIds,    // a prompt's token ids
  kState,  // text or ids, and a state
  kPiece,  // of a snapshot
};

struct Method {
  const char* name;
  MessageSize size;
  MayCall who;
};

namespace methods {
// The lists of sessions and snapshots look at the role once more: ListsAllOwners.
inline constexpr Method kGenerate{"palimpsest.v1.GenerationService/Generate", MessageSize::kState, MayCall::kUser};
inline constexpr Method kScore{"palimpsest.v1.GenerationService/Score", MessageSize::kState, MayCall::kUser};
inline constexpr Method kTokenize{"palimpsest.v1.GenerationService/Tokenize", MessageSize::kText, MayCall::kUser};
inline constexpr Method kDetokenize{"palimpsest.v1.GenerationService/Detokenize", MessageSize::kIds, MayCall::kUser};
inline constexpr Method kCreateSession{"palimpsest.v1.SessionService/CreateSession", MessageSize::kSmall,
                                       MayCall::kUser};
inline constexpr Method kGetSession{"palimpsest.v1.SessionService/GetSession", MessageSize::kSmall, MayCall::kUser};
inline constexpr Method kListSessions{"palimpsest.v1.SessionService/ListSessions", MessageSize::kSmall,
                                      MayCall::kUserOrAdmin};
inline constexpr Method kUpdateSession{"palimpsest.v1.SessionService/UpdateSession", MessageSize::kSmall,
                                       MayCall::kUser};
inline constexpr Method kForkSession{"palimpsest.v1.SessionService/ForkSession", MessageSize::kFork, MayCall::kUser};
inline constexpr Method kInterruptSession{"palimpsest.v1.SessionService/InterruptSession", MessageSize::kSmall,
                                          MayCall::kUser};
inline constexpr Method kDeleteSession{"palimpsest.v1.SessionService/DeleteSession", MessageSize::kSmall,
                                       MayCall::kUser};
inline constexpr Method kCreateSnapshot{"palimpsest.v1.SnapshotService/CreateSnapshot", MessageSize::kSmall,
                                        MayCall::kUser};
inline constexpr Method kGetSnapshot{"palimpsest.v1.SnapshotService/GetSnapshot", MessageSize::kSmall, MayCall::kUser};
inline constexpr Method kListSnapshots{"palimpsest.v1.SnapshotService/ListSnapshots", MessageSize::kSmall,
                                       MayCall::kUserOrAdmin};
inline constexpr Method kDeleteSnapshot{"palimpsest.v1.SnapshotService/DeleteSnapshot", MessageSize::kSmall,
                                        MayCall::kUser};
inline constexpr Method kDownloadSnapshot{"palimpsest.v1.SnapshotService/DownloadSnapshot", MessageSize::kSmall,
                                          MayCall::kUser};
inline constexpr Method kUploadSnapshot{"palimpsest.v1.SnapshotService/UploadSnapshot", MessageSize::kPiece,
                                        MayCall::kUser};
inline constexpr Method kListModels{"palimpsest.v1.ModelService/ListModels", MessageSize::kSmall,
                                    MayCall::kUserOrAdmin};
inline constexpr Method kGetModel{"palimpsest.v1.ModelService/GetModel", MessageSize::kSmall, MayCall::kUserOrAdmin};
inline constexpr Method kLoadModel{"palimpsest.v1.ModelService/LoadModel", MessageSize::kSmall, MayCall::kAdmin};
inline constexpr Method kUnloadModel{"palimpsest.v1.ModelService/UnloadModel", MessageSize::kSmall, MayCall::kAdmin};
}  // namespace methods

// Bytes of one piece of a snapshot, up or down.
inline constexpr int64_t kPieceBytes = int64_t{1} << 20;

inline MessageLimits LimitsOf(MessageSize size, const Limits& limits) {
  constexpr int64_t kSmallBytes = int64_t{16} << 10;
  constexpr int64_t kIdBytes = 10;  // on the wire, at most
  constexpr int64_t kOverhead = int64_t{8} << 20;
  // Ids are allowed for as parsing makes most of them: five bytes on the wire, each counted as a number of eight.
  const int64_t ids = limits.max_prompt_tokens * kIdBytes;
  const auto within = [&limits](int64_t bytes) { return std::min(bytes, limits.max_message_bytes); };
  switch (size) {
    case MessageSize::kSmall:
      return {kSmallBytes, kOverhead};
    case MessageSize::kFork:
      return {8 * kSmallBytes, kOverhead};
    case MessageSize::kText:
      return {within(limits.max_prompt_bytes + kSmallBytes), kOverhead};
    case MessageSize::kIds:
      return {within(ids + kSmallBytes), kOverhead + 8 * ids};
    case MessageSize::kState:
      return {limits.max_message_bytes, kOverhead + 8 * ids};
    case MessageSize::kPiece:
      return {within(kPieceBytes + kSmallBytes), kOverhead};
  }
  return {};
}

}  // namespace palimpsest
