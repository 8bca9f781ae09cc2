// A server whose models run on a device, over real gRPC. The device is the emulator's, which can be lost at will.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "absl/time/clock.h"
#include "kernels/cuda/cuda_device.h"
#include "server/rpc/testing/test_server.h"

namespace palimpsest {
namespace emulator {
void LoseDevice(bool lost);  // kernels/cuda/emulator/emulator.h, which is for kernels only
}

namespace {

using ::palimpsest::testing::Ask;
using ::palimpsest::testing::Reply;
using ::palimpsest::testing::TestServer;
using ::testing::HasSubstr;
using ::testing::StartsWith;

constexpr char kBundled[] = PALIMPSEST_SOURCE_DIR "/checkpoints/books-5m";

void UseDevice(ServerOptions& options) {
  options.backend.kind = BackendOptions::Kind::kCuda;
  options.backend.open = OpenCudaDevice;
}

void UseBundled(ServerOptions& options) {
  options.models = {{"books", kBundled}};
  options.model.math = ModelOptions::Math::kF32;  // bf16 products round to near ties
}

// The emulator sums in another order than the processor: logits differ in the last digits, greedy text does not.
TEST(DeviceServer, TheBundledCheckpointSaysTheSameAsOnTheProcessor) {
  TestServer processor([](ServerOptions& options) { UseBundled(options); });
  TestServer device([](ServerOptions& options) {
    UseBundled(options);
    UseDevice(options);
  });
  v1::GenerateRequest request = Ask("It was a dark and stormy night", 24);
  request.mutable_sampling()->clear_logit_bias();
  const Reply expected = processor.Generate(request), actual = device.Generate(request);
  ASSERT_TRUE(actual.status.ok()) << actual.status.error_message();
  EXPECT_EQ(actual.text, expected.text);
  EXPECT_EQ(actual.ids(), expected.ids());
}

TEST(DeviceServer, TellsWhereItRuns) {
  TestServer server(UseDevice);
  v1::GetModelRequest request;
  request.set_name("models/tiny");
  grpc::ClientContext context;
  v1::Model model;
  ASSERT_TRUE(server.models().GetModel(&context, request, &model).ok());
  EXPECT_EQ(model.backend(), "cuda (emulator, device 0)");
  const double before = server.Metric("palimpsest_device_recorded_passes_total{model=\"tiny\"}");
  ASSERT_TRUE(server.Generate(Ask("hello", 9)).status.ok());
  // Eight of the tokens, or nine, are steps in a batch of their own.
  EXPECT_GE(server.Metric("palimpsest_device_recorded_passes_total{model=\"tiny\"}"), before + 8);
  EXPECT_GT(server.Metric("palimpsest_device_direct_passes_total{model=\"tiny\"}"), 0);
  EXPECT_GT(server.Metric("palimpsest_device_total_bytes{model=\"tiny\"}"),
            server.Metric("palimpsest_device_free_bytes{model=\"tiny\"}"));
}

TEST(DeviceServer, AStateMadeOnTheProcessorGoesOnOnTheDevice) {
  TestServer processor, device(UseDevice);
  v1::GenerateRequest request = Ask("A long way from home", 6);
  request.set_session(processor.NewSession());
  ASSERT_TRUE(processor.Generate(request).status.ok());
  const auto [downloaded, bytes] = processor.Download(processor.NewSnapshot(request.session()));
  ASSERT_TRUE(downloaded.ok());
  const auto [uploaded, snapshot] = device.Upload(bytes);
  ASSERT_TRUE(uploaded.ok()) << uploaded.error_message();
  v1::CreateSessionRequest create;
  create.set_source_snapshot(snapshot.name());
  grpc::ClientContext context;
  v1::Session session;
  ASSERT_TRUE(device.sessions().CreateSession(&context, create, &session).ok());
  v1::GenerateRequest more = Ask("", 6);
  more.clear_text();
  more.set_session(request.session());
  const Reply expected = processor.Generate(more);
  more.set_session(session.name());
  const Reply actual = device.Generate(more);
  ASSERT_TRUE(actual.status.ok()) << actual.status.error_message();
  EXPECT_EQ(actual.ids(), expected.ids());
}

TEST(DeviceServer, ALostDeviceEndsRequestsAndLeavesSessionsWhereTheyWere) {
  TestServer server(UseDevice);
  v1::GenerateRequest request = Ask("hello", 4);
  request.set_session(server.NewSession());
  ASSERT_TRUE(server.Generate(request).status.ok());
  const v1::Session before = server.GetSession(request.session());
  emulator::LoseDevice(true);
  const Reply lost = server.Generate(request);
  const Reply later = server.Generate(Ask("hello", 4));
  emulator::LoseDevice(false);  // the server does not know, and would not trust it
  EXPECT_EQ(lost.status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_THAT(lost.status.error_message(), HasSubstr("the device emulator failed"));
  EXPECT_EQ(later.status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(server.Generate(Ask("hello", 4)).status.error_code(), grpc::StatusCode::UNAVAILABLE);
  const v1::Session after = server.GetSession(request.session());
  EXPECT_EQ(after.position(), before.position());
  EXPECT_EQ(after.etag(), before.etag());
  const char* const kEnded = R"(palimpsest_finished_total{model="tiny",reason="device_failed"})";
  EXPECT_EQ(server.AwaitMetric(kEnded, 1), 1) << "what came later was not taken";
  EXPECT_EQ(server.AwaitMetric("palimpsest_ready", 0), 0);
}

TEST(DeviceServer, WithoutCudaInTheBuildCudaIsRefusedAndAutoIsTheProcessor) {
  ServerOptions options = TestServer::DefaultOptions("");
  options.models = {{"books", kBundled}};
  options.backend.kind = BackendOptions::Kind::kCuda;
  const absl::Status refused = Server::Start(options).status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(refused.message(), HasSubstr("--backend=cpu"));
  options.backend.kind = BackendOptions::Kind::kAuto;
  EXPECT_TRUE(Server::Start(options).ok());
  UseDevice(options);
  options.backend.device = 7;
  EXPECT_THAT(Server::Start(options).status().message(), HasSubstr("no CUDA device 7"));
}

TEST(DeviceServer, SlotsFillTheMemoryOrAreRefused) {
  TestServer as_many_as_fit([](ServerOptions& options) {
    UseDevice(options);
    options.engine.slots = 0;
    options.engine.device_memory_fraction = 0.0325;  // of the emulator's 2 GiB, most of which products take
  });
  v1::GetModelRequest request;
  request.set_name("models/tiny");
  grpc::ClientContext context;
  v1::Model model;
  ASSERT_TRUE(as_many_as_fit.models().GetModel(&context, request, &model).ok());
  EXPECT_GT(model.slots(), 4);
  EXPECT_LT(model.slots(), 1000);
  ServerOptions options = TestServer::DefaultOptions("");
  options.models = {{"books", kBundled}};
  UseDevice(options);
  options.engine.slots = 65536;
  const absl::Status refused = Server::Start(options).status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(refused.message(), HasSubstr("use fewer slots"));
}

}  // namespace
}  // namespace palimpsest
