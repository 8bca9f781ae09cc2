// From a checked Generate or Score request to one that the engine takes: finds the model, the context and the tokens.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "palimpsest/v1/generation.pb.h"
#include "server/engine/request.h"
#include "server/models/registry.h"
#include "server/session/session_store.h"

namespace palimpsest {

struct ServerCore;
class Call;

// Errors of the store about a session, with the session as resource and a reason.
absl::Status SessionError(absl::Status status, const std::string& id);

// The same about a snapshot.
absl::Status SnapshotError(absl::Status status, const std::string& id);

// On OK `model` is referred to and `request` is ready but for its sink; a session is leased as the very last step.
// Fills in the call's log. `unknown_tokens` tells how often the text has something that the vocabulary does not; 0 for
// token ids.
absl::Status Prepare(ServerCore& core, const v1::GenerateRequest& wire, Call& call, ModelRef* model,
                     EngineRequest* request);
absl::Status Prepare(ServerCore& core, const v1::ScoreRequest& wire, Call& call, ModelRef* model,
                     EngineRequest* request, int64_t* unknown_tokens);

}  // namespace palimpsest
