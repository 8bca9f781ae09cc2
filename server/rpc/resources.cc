#include "server/rpc/resources.h"

#include <memory>
#include <string>

#include "absl/strings/str_cat.h"
#include "base/steady_clock.h"
#include "server/session/no_memory.h"

namespace palimpsest {

void FillTimestamp(absl::Time time, google::protobuf::Timestamp* wire) {
  const int64_t seconds = absl::ToUnixSeconds(time);
  wire->set_seconds(seconds);
  wire->set_nanos(static_cast<int32_t>(absl::ToInt64Nanoseconds(time - absl::FromUnixSeconds(seconds))));
}

void FillSession(const SessionInfo& info, v1::Session* wire) {
  wire->set_name(absl::StrCat("sessions/", info.id));
  wire->set_owner(info.owner);
  wire->set_model(absl::StrCat("models/", info.model));
  switch (info.condition) {
    case SessionCondition::kIdle:
      wire->set_condition(v1::Session::CONDITION_IDLE);
      break;
    case SessionCondition::kActive:
      wire->set_condition(v1::Session::CONDITION_ACTIVE);
      break;
    case SessionCondition::kQuarantined:
      wire->set_condition(v1::Session::CONDITION_QUARANTINED);
      break;
  }
  wire->set_position(info.position);
  wire->set_state_bytes(info.state_bytes);
  FillTimestamp(ToWallTime(info.create_time), wire->mutable_create_time());
  FillTimestamp(ToWallTime(info.update_time), wire->mutable_update_time());
  if (info.expire_time != absl::InfiniteFuture())
    FillTimestamp(ToWallTime(info.expire_time), wire->mutable_expire_time());
  auto* ttl = wire->mutable_ttl();  // zero: never expires
  if (info.ttl != absl::InfiniteDuration()) {
    absl::Duration rest;
    ttl->set_seconds(absl::IDivDuration(info.ttl, absl::Seconds(1), &rest));
    ttl->set_nanos(static_cast<int32_t>(absl::ToInt64Nanoseconds(rest)));
  }
  wire->set_etag(absl::StrCat(info.version));
}

void FillSnapshot(const SnapshotInfo& info, v1::Snapshot* wire) {
  wire->set_name(absl::StrCat("snapshots/", info.id));
  wire->set_owner(info.owner);
  wire->set_model(absl::StrCat("models/", info.model));
  wire->set_position(info.position);
  wire->set_size_bytes(info.size_bytes);
  wire->set_state_digest(info.digest);
  FillTimestamp(ToWallTime(info.create_time), wire->mutable_create_time());
  if (info.expire_time != absl::InfiniteFuture())
    FillTimestamp(ToWallTime(info.expire_time), wire->mutable_expire_time());
}

void FillModel(const ModelInfo& info, v1::Model* wire) {
  wire->set_name(absl::StrCat("models/", info.id));
  switch (info.condition) {
    case ModelCondition::kLoading:
      wire->set_condition(v1::Model::CONDITION_LOADING);
      break;
    case ModelCondition::kReady:
      wire->set_condition(v1::Model::CONDITION_READY);
      break;
    case ModelCondition::kUnloading:
      wire->set_condition(v1::Model::CONDITION_UNLOADING);
      break;
  }
  wire->set_architecture(info.architecture);
  wire->set_parameter_count(info.parameter_count);
  wire->set_weight_dtype(info.weight_dtype);
  wire->set_weight_bytes(info.weight_bytes);
  wire->set_vocabulary_size(info.vocabulary);
  wire->set_state_bytes(info.state_bytes);
  for (const StatePieceSpec& piece : info.state_pieces) {
    v1::StatePiece* made = wire->add_state_pieces();
    made->set_name(piece.name);
    made->set_dtype(std::string(NameOf(piece.dtype)));
    made->mutable_shape()->Add(piece.shape.begin(), piece.shape.end());
  }
  wire->set_max_context_tokens(info.max_context);
  wire->set_slots(info.slots);
  wire->set_fingerprint(info.fingerprint);
  wire->set_tokenizer(info.tokenizer);
  wire->set_backend(info.backend);
  wire->set_version(info.version);
}

absl::StatusOr<StatePtr> EmptyState(const StateFormat& format) {
  return OrNoMemory("a state", [&]() -> absl::StatusOr<StatePtr> {
    auto state = std::make_shared<State>();
    state->format = format;
    state->data = AlignedBytes(format.UsedBytes(0));
    return state;
  });
}

}  // namespace palimpsest
