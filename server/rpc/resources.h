// From the stores' values to the wire's resources.
#pragma once

#include <google/protobuf/timestamp.pb.h>

#include "absl/time/time.h"
#include "palimpsest/v1/model.pb.h"
#include "palimpsest/v1/session.pb.h"
#include "palimpsest/v1/snapshot.pb.h"
#include "server/models/registry.h"
#include "server/session/session_store.h"

namespace palimpsest {

void FillTimestamp(absl::Time time, google::protobuf::Timestamp* wire);
void FillSession(const SessionInfo& info, v1::Session* wire);
void FillSnapshot(const SnapshotInfo& info, v1::Snapshot* wire);
void FillModel(const ModelInfo& info, v1::Model* wire);

// A state that has seen nothing: what a snapshot of an empty session holds. RESOURCE_EXHAUSTED: no memory.
absl::StatusOr<StatePtr> EmptyState(const StateFormat& format);

}  // namespace palimpsest
