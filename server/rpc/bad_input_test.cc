// What users get for what is wrong: a table of calls, each with the code and the words of its answer. One server takes
// them all, one after another, and must answer a good call after each.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "server/rpc/testing/test_server.h"

namespace palimpsest {
namespace {

using ::palimpsest::testing::Ask;
using ::palimpsest::testing::DetailsOf;
using ::palimpsest::testing::ErrorDetails;
using ::palimpsest::testing::kPoisonToken;
using ::palimpsest::testing::Reply;
using ::palimpsest::testing::TestServer;
using ::testing::Contains;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr auto kInvalid = grpc::StatusCode::INVALID_ARGUMENT;
constexpr auto kNotFound = grpc::StatusCode::NOT_FOUND;
constexpr auto kAborted = grpc::StatusCode::ABORTED;
constexpr auto kPrecondition = grpc::StatusCode::FAILED_PRECONDITION;
constexpr auto kExhausted = grpc::StatusCode::RESOURCE_EXHAUSTED;
constexpr auto kDataLoss = grpc::StatusCode::DATA_LOSS;
constexpr auto kExists = grpc::StatusCode::ALREADY_EXISTS;
constexpr auto kDenied = grpc::StatusCode::PERMISSION_DENIED;

// What the rows may refer to.
struct World {
  TestServer server{[](ServerOptions& options) {
    options.limits.max_message_bytes = 1 << 20;
    options.limits.max_prompt_bytes = 2000;
    options.limits.max_prompt_tokens = 1000;
    options.limits.max_tokens = 500;
    options.limits.max_scored_values = 100;
    options.sessions.max_sessions = 16;
    options.sessions.max_snapshots = 3;
  }};
  std::string snapshot;  // the bytes of one of "tiny"
  std::string foreign;   // the bytes of one of another model
  int64_t max_snapshot_bytes = 0;

  World() {
    server.NewSession("idle");
    server.NewSession("sick");
    v1::GenerateRequest poison = Ask("", 4);
    poison.set_session("sessions/sick");
    poison.mutable_tokens()->add_ids(kPoisonToken);
    poison.mutable_tokens()->add_ids(1);
    server.Generate(poison);
    v1::GenerateRequest request = Ask("hello", 4);
    request.set_session("sessions/idle");
    server.Generate(request);
    server.NewSnapshot("sessions/idle", "kept");
    snapshot = server.Download("snapshots/kept").second;
    max_snapshot_bytes = static_cast<int64_t>(snapshot.size()) + 1027;

    TestServer second([](ServerOptions& options) { options.models[0].folder += "/../other"; });
    v1::GenerateRequest elsewhere = Ask("hello", 4);
    elsewhere.set_return_state(true);
    foreign = second.Generate(elsewhere).finish.state();
  }
};

using CallFunction = std::function<grpc::Status(World&)>;

struct Row {
  const char* name;
  CallFunction call;
  grpc::StatusCode code;
  const char* words;
  const char* field;   // that BadRequest names; "": none
  const char* reason;  // of ErrorInfo
};

CallFunction Generating(std::function<void(v1::GenerateRequest&, World&)> change) {
  return [change = std::move(change)](World& world) {
    v1::GenerateRequest request = Ask("hello");
    change(request, world);
    return world.server.Generate(request).status;
  };
}

CallFunction Scoring(std::function<void(v1::ScoreRequest&, World&)> change) {
  return [change = std::move(change)](World& world) {
    v1::ScoreRequest request;
    request.set_text("hello");
    change(request, world);
    return world.server.Score(request).first;
  };
}

// Any unary call: the stub's method, and the request.
template <class Stub, class Request, class Response>
CallFunction Calling(Stub& (TestServer::*stub)(),
                     grpc::Status (Stub::*method)(grpc::ClientContext*, const Request&, Response*),
                     std::function<void(Request&)> fill) {
  return [=](World& world) {
    grpc::ClientContext context;
    Request request;
    fill(request);
    Response response;
    return ((world.server.*stub)().*method)(&context, request, &response);
  };
}

CallFunction Creating(std::function<void(v1::CreateSessionRequest&)> fill) {
  return Calling(&TestServer::sessions, &v1::SessionService::Stub::CreateSession, std::move(fill));
}
CallFunction Updating(std::function<void(v1::UpdateSessionRequest&)> fill) {
  return Calling(&TestServer::sessions, &v1::SessionService::Stub::UpdateSession, std::move(fill));
}
CallFunction Forking(std::function<void(v1::ForkSessionRequest&)> fill) {
  return Calling(&TestServer::sessions, &v1::SessionService::Stub::ForkSession, std::move(fill));
}
CallFunction Snapping(std::function<void(v1::CreateSnapshotRequest&)> fill) {
  return Calling(&TestServer::snapshots, &v1::SnapshotService::Stub::CreateSnapshot, std::move(fill));
}
CallFunction Loading(std::function<void(v1::LoadModelRequest&)> fill) {
  return Calling(&TestServer::models, &v1::ModelService::Stub::LoadModel, std::move(fill));
}
CallFunction Uploading(std::function<std::string(World&)> bytes, v1::UploadSnapshotRequest first = {},
                       size_t piece = 1000) {
  return [=](World& world) { return world.server.Upload(bytes(world), first, piece).first; };
}
CallFunction UploadingMessages(std::vector<v1::UploadSnapshotRequest> messages) {
  return [=](World& world) {
    grpc::ClientContext context;
    v1::Snapshot snapshot;
    const auto writer = world.server.snapshots().UploadSnapshot(&context, &snapshot);
    for (const auto& message : messages) {
      if (!writer->Write(message)) break;
    }
    writer->WritesDone();
    return writer->Finish();
  };
}

v1::UploadSnapshotRequest First(const std::string& id, const std::string& model = "", double ttl = 0) {
  v1::UploadSnapshotRequest first;
  first.set_snapshot_id(id);
  first.set_model(model);
  if (ttl != 0) first.mutable_snapshot()->mutable_ttl()->set_seconds(static_cast<int64_t>(ttl));
  return first;
}

std::string Changed(std::string bytes, size_t at, char by) {
  bytes[at] = static_cast<char>(bytes[at] ^ by);
  return bytes;
}

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

// A table needs short rows: `r` is the request that the row spoils, `w` the world.
#define GENERATE(...) Generating([](v1::GenerateRequest& r, [[maybe_unused]] World& w) { __VA_ARGS__; })
#define SCORE(...) Scoring([](v1::ScoreRequest& r, [[maybe_unused]] World& w) { __VA_ARGS__; })

const std::vector<Row>& Rows() {
  static const std::vector<Row>& rows = *new std::vector<Row>{
      // Sampling.
      {"temperature_negative", GENERATE(r.mutable_sampling()->set_temperature(-0.5f)), kInvalid,
       "sampling.temperature is -0.5; accepted: 0 to 100", "sampling.temperature", "BAD_REQUEST"},
      {"temperature_too_high", GENERATE(r.mutable_sampling()->set_temperature(101)), kInvalid,
       "sampling.temperature is 101; accepted: 0 to 100", "sampling.temperature", "BAD_REQUEST"},
      {"temperature_nan", GENERATE(r.mutable_sampling()->set_temperature(kNan)), kInvalid,
       "sampling.temperature is nan; accepted: 0 to 100", "sampling.temperature", "BAD_REQUEST"},
      {"temperature_infinite", GENERATE(r.mutable_sampling()->set_temperature(kInfinity)), kInvalid,
       "sampling.temperature is inf; accepted: 0 to 100", "sampling.temperature", "BAD_REQUEST"},
      {"top_k_negative", GENERATE(r.mutable_sampling()->set_top_k(-1)), kInvalid,
       "sampling.top_k is -1; accepted: 0 (all) or more", "sampling.top_k", "BAD_REQUEST"},
      {"top_p_zero", GENERATE(r.mutable_sampling()->set_top_p(0)), kInvalid,
       "sampling.top_p is 0; accepted: above 0, up to 1", "sampling.top_p", "BAD_REQUEST"},
      {"top_p_above_one", GENERATE(r.mutable_sampling()->set_top_p(1.5f)), kInvalid,
       "sampling.top_p is 1.5; accepted: above 0, up to 1", "sampling.top_p", "BAD_REQUEST"},
      {"min_p_one", GENERATE(r.mutable_sampling()->set_min_p(1)), kInvalid,
       "sampling.min_p is 1; accepted: 0 to below 1", "sampling.min_p", "BAD_REQUEST"},
      {"min_p_negative", GENERATE(r.mutable_sampling()->set_min_p(-0.1f)), kInvalid,
       "sampling.min_p is -0.1; accepted: 0 to below 1", "sampling.min_p", "BAD_REQUEST"},
      {"repetition_penalty_zero", GENERATE(r.mutable_sampling()->set_repetition_penalty(0)), kInvalid,
       "sampling.repetition_penalty is 0; accepted: above 0, up to 10", "sampling.repetition_penalty", "BAD_REQUEST"},
      {"repetition_penalty_high", GENERATE(r.mutable_sampling()->set_repetition_penalty(11)), kInvalid,
       "sampling.repetition_penalty is 11; accepted: above 0, up to 10", "sampling.repetition_penalty", "BAD_REQUEST"},
      {"presence_penalty_low", GENERATE(r.mutable_sampling()->set_presence_penalty(-10.5f)), kInvalid,
       "sampling.presence_penalty is -10.5; accepted: -10 to 10", "sampling.presence_penalty", "BAD_REQUEST"},
      {"frequency_penalty_nan", GENERATE(r.mutable_sampling()->set_frequency_penalty(kNan)), kInvalid,
       "sampling.frequency_penalty is nan; accepted: -10 to 10", "sampling.frequency_penalty", "BAD_REQUEST"},
      {"logit_bias_value", GENERATE((*r.mutable_sampling()->mutable_logit_bias())[7] = 200), kInvalid,
       "sampling.logit_bias[7] is 200; accepted: -100 to 100", "sampling.logit_bias[7]", "BAD_REQUEST"},
      {"logit_bias_id", GENERATE((*r.mutable_sampling()->mutable_logit_bias())[256] = 1), kInvalid,
       "sampling.logit_bias[256] names a token that is not there; accepted: 0 to 255", "sampling.logit_bias[256]",
       "BAD_REQUEST"},
      {"logit_bias_negative_id", GENERATE((*r.mutable_sampling()->mutable_logit_bias())[-3] = 1), kInvalid,
       "sampling.logit_bias[-3] names a token that is not there", "sampling.logit_bias[-3]", "BAD_REQUEST"},
      {"logit_bias_entries",
       GENERATE(for (int i = 0; i < 1025; ++i)(*r.mutable_sampling()->mutable_logit_bias())[i] = 1), kInvalid,
       "sampling.logit_bias has 1025 entries; accepted: at most 1024", "sampling.logit_bias", "BAD_REQUEST"},
      // Stop criteria.
      {"max_tokens_negative", GENERATE(r.mutable_stop()->set_max_tokens(-1)), kInvalid,
       "stop.max_tokens is -1; accepted: 0 to 500 (--max_tokens)", "stop.max_tokens", "BAD_REQUEST"},
      {"max_tokens_over_limit", GENERATE(r.mutable_stop()->set_max_tokens(501)), kInvalid,
       "stop.max_tokens is 501; accepted: 0 to 500 (--max_tokens)", "stop.max_tokens", "BAD_REQUEST"},
      {"stop_string_empty", GENERATE(r.mutable_stop()->add_strings(std::string())), kInvalid,
       "stop.strings[0] has 0 bytes; accepted: 1 to 256", "stop.strings[0]", "BAD_REQUEST"},
      {"stop_string_long", GENERATE(r.mutable_stop()->add_strings(std::string(257, 'x'))), kInvalid,
       "stop.strings[0] has 257 bytes; accepted: 1 to 256", "stop.strings[0]", "BAD_REQUEST"},
      {"stop_strings_many", GENERATE(for (int i = 0; i < 17; ++i) r.mutable_stop()->add_strings(std::string(3, 'x'))),
       kInvalid, "stop.strings has 17 entries; accepted: at most 16 (--max_stop_strings)", "stop.strings",
       "BAD_REQUEST"},
      {"stop_tokens_many", GENERATE(for (int i = 0; i < 65; ++i) r.mutable_stop()->add_token_ids(i)), kInvalid,
       "stop.token_ids has 65 entries; accepted: at most 64", "stop.token_ids", "BAD_REQUEST"},
      {"stop_token_outside", GENERATE(r.mutable_stop()->add_token_ids(256)), kInvalid,
       "stop.token_ids[0] is 256; accepted: 0 to 255, the model's token ids", "stop.token_ids[0]", "BAD_REQUEST"},
      // What is reported.
      {"top_logprobs_negative", GENERATE(r.set_top_logprobs(-1)), kInvalid, "top_logprobs is -1; accepted: 0 to 20",
       "top_logprobs", "BAD_REQUEST"},
      {"top_logprobs_many", GENERATE(r.set_top_logprobs(21)), kInvalid, "top_logprobs is 21; accepted: 0 to 20",
       "top_logprobs", "BAD_REQUEST"},
      {"call_id_long", GENERATE(r.set_call_id(std::string(65, 'a'))), kInvalid,
       "of 65 bytes; accepted: at most 64 printable characters of ASCII without spaces", "call_id", "BAD_REQUEST"},
      {"call_id_newline", GENERATE(r.set_call_id("a\nb")), kInvalid, "call_id is \"a\\nb\", of 3 bytes", "call_id",
       "BAD_REQUEST"},
      // Several at once are all told.
      {"several", GENERATE(r.mutable_sampling()->set_temperature(-1), r.mutable_stop()->set_max_tokens(-1)), kInvalid,
       "sampling.temperature is -1; accepted: 0 to 100. Also: stop.max_tokens is -1", "stop.max_tokens", "BAD_REQUEST"},
      // Model, context and prompt.
      {"model_without_collection", GENERATE(r.set_model("tiny")), kInvalid,
       "model is \"tiny\"; accepted: models/{model}", "model", "BAD_REQUEST"},
      {"model_climbing", GENERATE(r.set_model("models/../tiny")), kInvalid,
       "model is \"models/../tiny\"; accepted: models/{model}", "model", "BAD_REQUEST"},
      {"model_unknown", GENERATE(r.set_model("models/nobody")), kNotFound,
       "models/nobody is not loaded here; ListModels says which are", "", "MODEL_NOT_FOUND"},
      {"session_without_collection", GENERATE(r.set_session("idle")), kInvalid,
       "session is \"idle\"; accepted: sessions/{session}", "session", "BAD_REQUEST"},
      {"session_unknown", GENERATE(r.set_session("sessions/nobody")), kNotFound,
       "no session \"nobody\": never created, deleted or expired", "", "SESSION_NOT_FOUND"},
      {"session_of_another_model", GENERATE(r.set_session("sessions/idle"), r.set_model("models/other")), kInvalid,
       "model is models/other, but sessions/idle is of models/tiny", "model", "BAD_REQUEST"},
      {"session_quarantined", GENERATE(r.set_session("sessions/sick")), kPrecondition, "quarantined", "",
       "SESSION_QUARANTINED"},
      {"nothing_to_continue", GENERATE(r.clear_prompt()), kPrecondition,
       "there is nothing to continue from: the context and the prompt are empty", "", "NOTHING_TO_CONTINUE"},
      {"token_outside", GENERATE(r.mutable_tokens()->add_ids(3), r.mutable_tokens()->add_ids(256)), kInvalid,
       "tokens.ids[1] is 256; accepted: 0 to 255, the model's token ids", "tokens.ids[1]", "BAD_REQUEST"},
      {"token_negative", GENERATE(r.mutable_tokens()->add_ids(-1)), kInvalid, "tokens.ids[0] is -1; accepted: 0 to 255",
       "tokens.ids[0]", "BAD_REQUEST"},
      {"text_over_bytes", GENERATE(r.set_text(std::string(2001, 'x'))), kExhausted,
       "text has 2001 bytes; accepted: at most 2000 (--max_prompt_bytes)", "", "TEXT_TOO_LONG"},
      {"text_over_tokens", GENERATE(r.set_text(std::string(1001, 'x'))), kExhausted,
       "text has more than 1000 tokens (--max_prompt_tokens)", "", "PROMPT_TOO_LONG"},
      {"tokens_over_limit", GENERATE(for (int i = 0; i < 1001; ++i) r.mutable_tokens()->add_ids(1)), kExhausted,
       "tokens.ids has more than 1000 tokens (--max_prompt_tokens)", "", "PROMPT_TOO_LONG"},
      // Inline states.
      {"state_not_one", GENERATE(r.set_state("not a snapshot at all")), kInvalid,
       "state not a snapshot: it does not begin with PLMPSTAT", "state", "BAD_REQUEST"},
      {"state_empty", GENERATE(r.set_state("")), kDataLoss, "state: snapshot is truncated: it has 0 bytes only", "",
       "STATE_REFUSED"},
      {"state_truncated", GENERATE(r.set_state(w.snapshot.substr(0, w.snapshot.size() - 1))), kDataLoss,
       "state: snapshot is truncated", "", "STATE_REFUSED"},
      {"state_too_long", GENERATE(r.set_state(w.snapshot + "x")), kDataLoss, "state: snapshot is too long", "",
       "STATE_REFUSED"},
      {"state_bit_flipped", GENERATE(r.set_state(Changed(w.snapshot, w.snapshot.size() / 2, 4))), kDataLoss,
       "its checksum does not match its bytes", "", "STATE_REFUSED"},
      {"state_of_another_version", GENERATE(r.set_state(Changed(w.snapshot, 8, 2))), kInvalid,
       "snapshot has format version 3, this server reads versions 1 and 2", "state", "BAD_REQUEST"},
      {"state_of_another_model", GENERATE(r.set_state(w.foreign)), kPrecondition,
       "state: snapshot is of another model: its fingerprint is", "", "STATE_REFUSED"},
      // Score, Tokenize, Detokenize.
      {"score_nothing", SCORE(r.clear_input()), kInvalid, "input is empty; accepted: text or tokens to score", "input",
       "BAD_REQUEST"},
      {"score_token_outside", SCORE(r.mutable_tokens()->add_ids(999)), kInvalid,
       "tokens.ids[0] is 999; accepted: 0 to 255", "tokens.ids[0]", "BAD_REQUEST"},
      {"score_last_zero", SCORE(r.set_score_last(0)), kInvalid,
       "score_last is 0; accepted: 1 to 5, the number of the input's tokens", "score_last", "BAD_REQUEST"},
      {"score_last_negative", SCORE(r.set_score_last(std::numeric_limits<int32_t>::min())), kInvalid,
       "score_last is -2147483648; accepted: 1 to 5", "score_last", "BAD_REQUEST"},
      {"score_last_more_than_there_is", SCORE(r.set_score_last(6)), kInvalid, "score_last is 6; accepted: 1 to 5",
       "score_last", "BAD_REQUEST"},
      {"score_answer_too_long", SCORE(r.set_text(std::string(50, 'x')), r.set_top_logprobs(2)), kExhausted,
       "the answer would hold 150 log-probabilities; accepted: at most 100 (--max_scored_values)", "",
       "ANSWER_TOO_LONG"},
      {"score_session_unknown", SCORE(r.set_session("sessions/nobody")), kNotFound, "no session \"nobody\"", "",
       "SESSION_NOT_FOUND"},
      {"tokenize_unknown_model",
       Calling<v1::GenerationService::Stub, v1::TokenizeRequest, v1::TokenizeResponse>(
           &TestServer::generation, &v1::GenerationService::Stub::Tokenize,
           [](v1::TokenizeRequest& r) { r.set_model("models/nobody"); }),
       kNotFound, "models/nobody is not loaded here", "", "MODEL_NOT_FOUND"},
      {"detokenize_outside",
       Calling<v1::GenerationService::Stub, v1::DetokenizeRequest, v1::DetokenizeResponse>(
           &TestServer::generation, &v1::GenerationService::Stub::Detokenize,
           [](v1::DetokenizeRequest& r) { r.add_ids(1), r.add_ids(-7); }),
       kInvalid, "ids[1] is -7; accepted: 0 to 255, the model's token ids", "ids[1]", "BAD_REQUEST"},
      // Sessions.
      {"create_bad_id", Creating([](auto& r) { r.set_session_id("Upper"); }), kInvalid,
       "session_id is \"Upper\"; accepted: 1 to 63 characters [a-z0-9-], beginning with a letter", "session_id",
       "BAD_REQUEST"},
      {"create_long_id", Creating([](auto& r) { r.set_session_id(std::string(64, 'a')); }), kInvalid,
       "accepted: 1 to 63 characters", "session_id", "BAD_REQUEST"},
      {"create_taken", Creating([](auto& r) { r.set_session_id("idle"); }), kExists,
       "session id \"idle\" is taken; choose another or leave it empty", "", "SESSION_EXISTS"},
      {"create_unknown_model", Creating([](auto& r) { r.mutable_session()->set_model("models/nobody"); }), kNotFound,
       "models/nobody is not loaded here", "", "MODEL_NOT_FOUND"},
      {"create_unknown_source", Creating([](auto& r) { r.set_source_session("sessions/nobody"); }), kNotFound,
       "no session \"nobody\"", "", "SESSION_NOT_FOUND"},
      {"create_unknown_snapshot", Creating([](auto& r) { r.set_source_snapshot("snapshots/nobody"); }), kNotFound,
       "no snapshot \"nobody\"", "", "SNAPSHOT_NOT_FOUND"},
      {"create_source_of_another_model", Creating([](auto& r) {
         r.set_source_session("sessions/idle");
         r.mutable_session()->set_model("models/other");
       }),
       kInvalid, "session.model is models/other, but the source is of models/tiny", "session.model", "BAD_REQUEST"},
      {"create_ttl_short", Creating([](auto& r) { r.mutable_session()->mutable_ttl()->set_nanos(500'000'000); }),
       kInvalid, "session.ttl is 500ms; accepted: 0 (never expires), or 1s to", "session.ttl", "BAD_REQUEST"},
      {"create_ttl_negative", Creating([](auto& r) { r.mutable_session()->mutable_ttl()->set_seconds(-5); }), kInvalid,
       "session.ttl is -5s; accepted", "session.ttl", "BAD_REQUEST"},
      {"create_ttl_endless",
       Creating([](auto& r) { r.mutable_session()->mutable_ttl()->set_seconds(std::numeric_limits<int64_t>::max()); }),
       kInvalid, "session.ttl is", "session.ttl", "BAD_REQUEST"},
      {"create_bad_request_id", Creating([](auto& r) { r.set_request_id("not-a-uuid"); }), kInvalid,
       "request_id is \"not-a-uuid\"; accepted: a UUID", "request_id", "BAD_REQUEST"},
      {"get_bad_name",
       Calling<v1::SessionService::Stub, v1::GetSessionRequest, v1::Session>(
           &TestServer::sessions, &v1::SessionService::Stub::GetSession,
           [](v1::GetSessionRequest& r) { r.set_name("sessions/"); }),
       kInvalid, "name is \"sessions/\"; accepted: sessions/{session}", "name", "BAD_REQUEST"},
      {"get_unknown",
       Calling<v1::SessionService::Stub, v1::GetSessionRequest, v1::Session>(
           &TestServer::sessions, &v1::SessionService::Stub::GetSession,
           [](v1::GetSessionRequest& r) { r.set_name("sessions/nobody"); }),
       kNotFound, "no session \"nobody\"", "", "SESSION_NOT_FOUND"},
      {"list_page_size",
       Calling<v1::SessionService::Stub, v1::ListSessionsRequest, v1::ListSessionsResponse>(
           &TestServer::sessions, &v1::SessionService::Stub::ListSessions,
           [](v1::ListSessionsRequest& r) { r.set_page_size(-1); }),
       kInvalid, "page_size is -1; accepted: 0 or more", "page_size", "BAD_REQUEST"},
      {"list_page_token",
       Calling<v1::SessionService::Stub, v1::ListSessionsRequest, v1::ListSessionsResponse>(
           &TestServer::sessions, &v1::SessionService::Stub::ListSessions,
           [](v1::ListSessionsRequest& r) { r.set_page_token("aWRsZQ"); }),
       kInvalid, "page_token is \"aWRsZQ\", which this server did not give for this list", "page_token", "BAD_REQUEST"},
      {"update_etag_stale", Updating([](auto& r) {
         r.mutable_session()->set_name("sessions/idle");
         r.mutable_session()->set_etag("stale");
         r.mutable_session()->mutable_ttl()->set_seconds(60);
       }),
       kAborted, "not \"stale\"; get it again and retry", "", "ETAG_STALE"},
      {"update_mask", Updating([](auto& r) {
         r.mutable_session()->set_name("sessions/idle");
         r.mutable_update_mask()->add_paths("position");
       }),
       kInvalid, "update_mask names \"position\"; accepted: \"ttl\", or no mask", "update_mask", "BAD_REQUEST"},
      {"update_masked_but_absent", Updating([](auto& r) {
         r.mutable_session()->set_name("sessions/idle");
         r.mutable_update_mask()->add_paths("ttl");
       }),
       kInvalid, "session.ttl is named in update_mask but absent", "session.ttl", "BAD_REQUEST"},
      {"update_unknown", Updating([](auto& r) {
         r.mutable_session()->set_name("sessions/nobody");
         r.mutable_session()->mutable_ttl()->set_seconds(60);
       }),
       kNotFound, "no session \"nobody\"", "", "SESSION_NOT_FOUND"},
      {"fork_count", Forking([](auto& r) {
         r.set_name("sessions/idle");
         r.set_count(1025);
       }),
       kInvalid, "count is 1025; accepted: 1 to 1024", "count", "BAD_REQUEST"},
      {"fork_count_negative", Forking([](auto& r) {
         r.set_name("sessions/idle");
         r.set_count(-2);
       }),
       kInvalid, "count is -2; accepted: 1 to 1024", "count", "BAD_REQUEST"},
      {"fork_ids_disagree", Forking([](auto& r) {
         r.set_name("sessions/idle");
         r.set_count(3);
         r.add_session_ids("one");
       }),
       kInvalid, "session_ids has 1 entries; accepted: none, or 3 as count says", "session_ids", "BAD_REQUEST"},
      {"fork_id_twice", Forking([](auto& r) {
         r.set_name("sessions/idle");
         r.add_session_ids("twin");
         r.add_session_ids("twin");
       }),
       kExists, "session id \"twin\" is taken", "", "SESSION_EXISTS"},
      {"fork_quarantined", Forking([](auto& r) { r.set_name("sessions/sick"); }), kPrecondition, "quarantined", "",
       "SESSION_QUARANTINED"},
      {"fork_over_limit", Forking([](auto& r) {
         r.set_name("sessions/idle");
         r.set_count(1000);
       }),
       kExhausted, "limit is 16", "", "SESSION_LIMIT"},
      {"delete_unknown",
       Calling<v1::SessionService::Stub, v1::DeleteSessionRequest, google::protobuf::Empty>(
           &TestServer::sessions, &v1::SessionService::Stub::DeleteSession,
           [](v1::DeleteSessionRequest& r) { r.set_name("sessions/nobody"); }),
       kNotFound, "no session \"nobody\"", "", "SESSION_NOT_FOUND"},
      {"delete_etag_stale",
       Calling<v1::SessionService::Stub, v1::DeleteSessionRequest,
               google::protobuf::Empty>(&TestServer::sessions, &v1::SessionService::Stub::DeleteSession,
                                        [](v1::DeleteSessionRequest& r) {
                                          r.set_name("sessions/idle");
                                          r.set_etag("0");
                                        }),
       kAborted, "not \"0\"; get it again and retry", "", "ETAG_STALE"},
      // Snapshots.
      {"snapshot_without_session", Snapping([](auto&) {}), kInvalid, "session is \"\"; accepted: sessions/{session}",
       "session", "BAD_REQUEST"},
      {"snapshot_taken", Snapping([](auto& r) {
         r.set_session("sessions/idle");
         r.set_snapshot_id("kept");
       }),
       kExists, "snapshot id \"kept\" is taken", "", "SNAPSHOT_EXISTS"},
      {"snapshot_quarantined", Snapping([](auto& r) { r.set_session("sessions/sick"); }), kPrecondition, "quarantined",
       "", "SESSION_QUARANTINED"},
      {"download_unknown", [](World& w) { return w.server.Download("snapshots/nobody").first; }, kNotFound,
       "no snapshot \"nobody\"", "", "SNAPSHOT_NOT_FOUND"},
      {"download_bad_name", [](World& w) { return w.server.Download("sessions/idle").first; }, kInvalid,
       "name is \"sessions/idle\"; accepted: snapshots/{snapshot}", "name", "BAD_REQUEST"},
      {"upload_nothing", UploadingMessages({}), kInvalid, "data is missing: no message came", "data", "BAD_REQUEST"},
      {"upload_not_a_snapshot", Uploading([](World&) { return std::string(3000, 'x'); }), kInvalid,
       "data not a snapshot: it does not begin with PLMPSTAT", "data", "BAD_REQUEST"},
      {"upload_truncated", Uploading([](World& w) { return w.snapshot.substr(0, 700); }), kDataLoss,
       "data: snapshot is truncated", "", "SNAPSHOT_REFUSED"},
      {"upload_bit_flipped", Uploading([](World& w) { return Changed(w.snapshot, w.snapshot.size() - 40, 1); }),
       kDataLoss, "its checksum does not match its bytes", "", "SNAPSHOT_REFUSED"},
      {"upload_of_another_model", Uploading([](World& w) { return w.foreign; }), kPrecondition,
       "data: snapshot is of another model", "", "SNAPSHOT_REFUSED"},
      {"upload_too_long", Uploading([](World& w) { return w.snapshot + std::string(5000, 'x'); }), kExhausted,
       "a snapshot of models/tiny", "", "SNAPSHOT_TOO_LONG"},
      {"upload_unknown_model", Uploading([](World& w) { return w.snapshot; }, First("", "models/nobody")), kNotFound,
       "models/nobody is not loaded here", "", "MODEL_NOT_FOUND"},
      {"upload_bad_id", Uploading([](World& w) { return w.snapshot; }, First("9lives")), kInvalid,
       "snapshot_id is \"9lives\"; accepted: 1 to 63 characters", "snapshot_id", "BAD_REQUEST"},
      {"upload_taken", Uploading([](World& w) { return w.snapshot; }, First("kept")), kExists,
       "snapshot id \"kept\" is taken", "", "SNAPSHOT_EXISTS"},
      {"upload_named_twice", UploadingMessages({First("one"), First("two")}), kInvalid,
       "snapshot_id is set in a later message; accepted: in the first only", "snapshot_id", "BAD_REQUEST"},
      {"upload_ttl", Uploading([](World& w) { return w.snapshot; }, First("", "", -3)), kInvalid,
       "snapshot.ttl is -3s; accepted", "snapshot.ttl", "BAD_REQUEST"},
      // Models.
      {"load_bad_id", Loading([](auto& r) {
         r.set_model_id("a/b");
         r.set_path("tiny");
       }),
       kInvalid, "model_id is \"a/b\"; accepted: 1 to 63 characters [a-z0-9.-], beginning with a letter", "model_id",
       "BAD_REQUEST"},
      {"load_no_path", Loading([](auto& r) { r.set_model_id("new"); }), kInvalid,
       "path is empty; accepted: a folder below the server's --model_root", "path", "BAD_REQUEST"},
      {"load_taken", Loading([](auto& r) {
         r.set_model_id("tiny");
         r.set_path("tiny");
       }),
       kExists, "models/tiny is there already", "", "MODEL_EXISTS"},
      {"load_climbing", Loading([](auto& r) {
         r.set_model_id("new");
         r.set_path("../../etc");
       }),
       kDenied, "path \"../../etc\" leads out of the server's --model_root", "", "PATH_OUTSIDE_ROOT"},
      {"load_absolute", Loading([](auto& r) {
         r.set_model_id("new");
         r.set_path("/etc");
       }),
       kDenied, "path \"/etc\" leads out of the server's --model_root", "", "PATH_OUTSIDE_ROOT"},
      {"load_not_there", Loading([](auto& r) {
         r.set_model_id("new");
         r.set_path("nobody");
       }),
       kNotFound, "path \"nobody\" is not a folder below the server's --model_root", "", "PATH_NOT_FOUND"},
      {"unload_unknown",
       Calling<v1::ModelService::Stub, v1::UnloadModelRequest, google::protobuf::Empty>(
           &TestServer::models, &v1::ModelService::Stub::UnloadModel,
           [](v1::UnloadModelRequest& r) { r.set_name("models/nobody"); }),
       kNotFound, "models/nobody is not loaded here", "", "MODEL_NOT_FOUND"},
      // What gRPC itself refuses.
      {"message_over_limit", GENERATE(r.set_state(std::string(2 << 20, 'x'))), kExhausted, "", "", ""},
  };
  return rows;
}

class BadInput : public ::testing::TestWithParam<size_t> {
 public:
  static void SetUpTestSuite() { world_ = new World; }
  static void TearDownTestSuite() {
    delete world_;
    world_ = nullptr;
  }

 protected:
  static World* world_;
};
World* BadInput::world_ = nullptr;

TEST_P(BadInput, IsAnsweredWithTheCodeAndWordsOfItsRow) {
  const Row& row = Rows()[GetParam()];
  const grpc::Status status = row.call(*world_);
  EXPECT_EQ(status.error_code(), row.code) << status.error_message();
  EXPECT_THAT(status.error_message(), HasSubstr(row.words));
  const ErrorDetails details = DetailsOf(status);
  EXPECT_EQ(details.reason, row.reason);
  EXPECT_EQ(details.domain, *row.reason != '\0' ? "palimpsest.dev" : "");
  if (*row.field != '\0') {
    EXPECT_THAT(details.fields, Contains(row.field));
  } else {
    EXPECT_THAT(details.fields, IsEmpty());
  }
  if (row.code == kNotFound && *row.reason != '\0' && std::string(row.reason) != "PATH_NOT_FOUND") {
    EXPECT_THAT(details.resource, HasSubstr("/nobody"));
  }

  const Reply good = world_->server.Generate(Ask("hello", 2));
  EXPECT_TRUE(good.status.ok()) << good.status.error_message();
  EXPECT_EQ(good.tokens.size(), 2);
}

INSTANTIATE_TEST_SUITE_P(Table, BadInput, ::testing::Range<size_t>(0, Rows().size()),
                         [](const auto& info) { return std::string(Rows()[info.param].name); });

TEST(BadInputTable, HasAsManyRowsAsPromised) { EXPECT_GE(Rows().size(), 100); }

}  // namespace
}  // namespace palimpsest
