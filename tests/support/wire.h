// Calls on a server by its wire contract alone: the generated stubs, and replies whose floats are compared as bits.
#pragma once

#include <grpcpp/grpcpp.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <ostream>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "palimpsest/v1/generation.grpc.pb.h"
#include "palimpsest/v1/model.grpc.pb.h"
#include "palimpsest/v1/session.grpc.pb.h"
#include "palimpsest/v1/snapshot.grpc.pb.h"

namespace palimpsest::testing {

// A connection of its own, and the stubs on it. Thread-safe.
struct Stubs {
  // `small_windows`: a stream that is not read holds 16 KiB on its way, and no more; else gRPC finds out how much is
  // best.
  explicit Stubs(const std::string& target, bool small_windows = false);

  std::shared_ptr<grpc::Channel> channel;
  std::unique_ptr<v1::GenerationService::Stub> generation;
  std::unique_ptr<v1::SessionService::Stub> sessions;
  std::unique_ptr<v1::SnapshotService::Stub> snapshots;
  std::unique_ptr<v1::ModelService::Stub> models;
};

// A token and the bits of its log-probability and of those of its alternatives.
struct TokenBits {
  int32_t id = 0;
  std::vector<uint32_t> logprobs;
  bool operator==(const TokenBits&) const = default;
};

// All that a generation gave. Equal if every bit is: text, tokens, log-probabilities, digest, state, position.
struct Reply {
  std::string text;
  std::vector<TokenBits> tokens;
  std::string digest;
  std::string state;
  int64_t position = 0;
  v1::FinishReason reason = v1::FINISH_REASON_UNSPECIFIED;
  bool operator==(const Reply&) const = default;
};
void PrintTo(const Reply& reply, std::ostream* out);

// What came of a call: `status`, and the reply as far as it came.
struct Outcome {
  grpc::Status status;
  Reply reply;
  v1::Usage usage;
};
// `on_message` sees each message as it comes, before the next is read; it may cancel the context.
Outcome Generate(Stubs& stubs, const v1::GenerateRequest& request, grpc::ClientContext& context,
                 const std::function<void(const v1::GenerateResponse&)>& on_message = {});
// With a deadline of two minutes; anything but OK fails the test.
Reply GenerateOk(Stubs& stubs, const v1::GenerateRequest& request);
void SetTimeout(grpc::ClientContext& context, absl::Duration timeout);

// Sessions and snapshots, by full name; anything but OK fails the test.
std::string CreateSession(Stubs& stubs, const std::string& source_snapshot = "");
std::vector<std::string> ForkSession(Stubs& stubs, const std::string& session, int count);
v1::Session GetSession(Stubs& stubs, const std::string& session);
void DeleteSession(Stubs& stubs, const std::string& session);
v1::Snapshot CreateSnapshot(Stubs& stubs, const std::string& session);
std::string DownloadSnapshot(Stubs& stubs, const std::string& snapshot);
v1::Snapshot UploadSnapshot(Stubs& stubs, const std::string& bytes);

// The standard health service.
enum class Health { kUnknown = 0, kServing = 1, kNotServing = 2, kServiceUnknown = 3, kUnreachable = -1 };
Health CheckHealth(const std::string& target);
// Calls `on_change` for each status that Watch tells until the stream ends or `context` is cancelled.
void WatchHealth(const std::shared_ptr<grpc::Channel>& channel, grpc::ClientContext& context,
                 const std::function<void(Health)>& on_change);

}  // namespace palimpsest::testing
