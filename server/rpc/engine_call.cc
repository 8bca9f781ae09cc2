#include "server/rpc/engine_call.h"

#include "server/errors/errors.h"

namespace palimpsest {

v1::FinishReason ReasonOf(EndReason reason) {
  switch (reason) {
    case EndReason::kLength:
      return v1::FINISH_REASON_LENGTH;
    case EndReason::kStopToken:
      return v1::FINISH_REASON_STOP_TOKEN;
    case EndReason::kStopString:
      return v1::FINISH_REASON_STOP_STRING;
    case EndReason::kContextFull:
      return v1::FINISH_REASON_CONTEXT_FULL;
  }
  return v1::FINISH_REASON_UNSPECIFIED;
}

int32_t TokenBefore(const EngineRequest& request, int64_t count) {
  if (count > 0) return request.prompt[count - 1];
  return request.initial == nullptr ? Tokenizer::kNoToken : request.initial->head.pending;
}

void FillUsage(const RequestSink::Finish& finish, v1::Usage* usage) {
  usage->set_prompt_tokens(finish.prompt_tokens);
  usage->set_generated_tokens(finish.generated_tokens);
  usage->set_cached_tokens(finish.cached_tokens);
  usage->set_queue_seconds(absl::ToDoubleSeconds(finish.queue_time));
  usage->set_time_to_first_token_seconds(absl::ToDoubleSeconds(finish.time_to_first_token));
  usage->set_total_seconds(absl::ToDoubleSeconds(finish.total_time));
}

void FillLog(const RequestSink::Finish& finish, CallLog* log) {
  log->prompt_tokens = finish.prompt_tokens;
  log->generated_tokens = finish.generated_tokens;
  log->cached_tokens = finish.cached_tokens;
  log->position = finish.position;
  log->queue_time = finish.queue_time;
  log->time_to_first_token = finish.time_to_first_token;
}

absl::Status EngineError(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kResourceExhausted:
      return WithReason(status, "QUEUE_FULL");
    case absl::StatusCode::kAborted:
      return WithoutRetry(WithReason(absl::ResourceExhaustedError(status.message()), "STREAM_STALLED"));
    case absl::StatusCode::kUnavailable:
      return WithReason(status, "SERVER_DRAINING");
    case absl::StatusCode::kInternal:
      return WithReason(status, "NUMBERS_NOT_FINITE");
    case absl::StatusCode::kFailedPrecondition:
      return WithReason(status, "CONTEXT_FULL");
    default:
      return status;
  }
}

absl::Status FinishError(const absl::Status& status) {
  return absl::IsResourceExhausted(status) ? WithReason(status, "NO_MEMORY") : EngineError(status);
}

absl::Status FillState(const StatePtr& state, std::string* field) {
  if (state == nullptr) return absl::OkStatus();
  absl::StatusOr<std::string> bytes = SerializeSnapshot(*state);
  if (!bytes.ok()) return WithReason(bytes.status(), "NO_MEMORY");
  *field = *std::move(bytes);
  return absl::OkStatus();
}

int64_t ReplyBytes(const EngineRequest& request, const ModelRef& model) {
  constexpr int64_t kBufferBytes = int64_t{64} << 10;  // gRPC's, of one stream
  const int64_t prompt = std::ssize(request.prompt) * static_cast<int64_t>(sizeof(int32_t));
  return kBufferBytes + prompt + (request.want_state ? MaxSnapshotBytes(model.engine().state_format()) : 0);
}

int64_t TokenBytes(int64_t tokens, int32_t top_logprobs) {
  constexpr int64_t kTokenBytes = 32;  // id, bytes and log-probability, in a message of their own
  return tokens * (1 + top_logprobs) * kTokenBytes;
}

}  // namespace palimpsest
