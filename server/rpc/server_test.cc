// A server's life: options, health, reflection, metrics, draining, TLS.
#include "server/rpc/server.h"

#include <gmock/gmock.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/generic/generic_stub.h>
#include <gtest/gtest.h>

#include <cmath>
#include <condition_variable>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "server/model/testing/random_checkpoint.h"
#include "server/rpc/testing/test_server.h"

namespace palimpsest {
namespace {

using ::palimpsest::testing::Ask;
using ::palimpsest::testing::DetailsOf;
using ::palimpsest::testing::Reply;
using ::palimpsest::testing::TemporaryFolder;
using ::palimpsest::testing::TestServer;
using ::testing::HasSubstr;

// grpc.health.v1 by hand: request { string service = 1 }, response { enum status = 1 }, 1 SERVING, 2 NOT_SERVING.
constexpr int kServing = 1;
constexpr int kNotServing = 2;

// The status that Check gives; minus the code when it fails.
int CheckHealth(const std::shared_ptr<grpc::Channel>& channel, const std::string& service) {
  grpc::GenericStub stub(channel);
  std::string request;
  if (!service.empty()) request = absl::StrCat("\x0a", std::string(1, static_cast<char>(service.size())), service);
  grpc::Slice slice(request);
  grpc::ByteBuffer sent(&slice, 1);
  grpc::ByteBuffer received;
  grpc::ClientContext context;
  grpc::Status status;
  std::mutex mutex;
  std::condition_variable done;
  bool ended = false;
  stub.UnaryCall(&context, "/grpc.health.v1.Health/Check", {}, &sent, &received, [&](grpc::Status result) {
    std::lock_guard<std::mutex> lock(mutex);
    status = std::move(result);
    ended = true;
    done.notify_one();
  });
  std::unique_lock<std::mutex> lock(mutex);
  done.wait(lock, [&] { return ended; });
  if (!status.ok()) return -status.error_code();
  grpc::Slice answer;
  EXPECT_TRUE(received.DumpToSingleSlice(&answer).ok());
  return answer.size() == 2 && answer.begin()[0] == 8 ? answer.begin()[1] : 0;
}

std::shared_ptr<grpc::Channel> NewChannel(int32_t port) {
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  return grpc::CreateCustomChannel(absl::StrCat("127.0.0.1:", port), grpc::InsecureChannelCredentials(), arguments);
}

TEST(Health, IsNotServingUntilTheModelIsWarmAndCallsAreTurnedAwayUntilThen) {
  int whole = 0;
  int generation = 0;
  grpc::Status early;
  TestServer server([&](ServerOptions& options) {
    options.on_listening = [&](int32_t port, int32_t metrics_port) {
      EXPECT_GT(metrics_port, 0);
      const auto channel = NewChannel(port);
      whole = CheckHealth(channel, "");
      generation = CheckHealth(channel, "palimpsest.v1.GenerationService");
      grpc::ClientContext context;
      v1::ListModelsResponse response;
      early = v1::ModelService::NewStub(channel)->ListModels(&context, {}, &response);
    };
  });
  EXPECT_EQ(whole, kNotServing);
  EXPECT_EQ(generation, kNotServing);
  EXPECT_EQ(early.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(DetailsOf(early).reason, "SERVER_STARTING");
  for (const char* service : {"", "palimpsest.v1.GenerationService", "palimpsest.v1.SessionService",
                              "palimpsest.v1.SnapshotService", "palimpsest.v1.ModelService"}) {
    EXPECT_EQ(CheckHealth(server.channel(), service), kServing) << service;
  }
  EXPECT_EQ(CheckHealth(server.channel(), "palimpsest.v1.Nobody"), -grpc::StatusCode::NOT_FOUND);
}

TEST(Health, IsServingWhileThereIsAModelToAnswerWith) {
  TestServer server([](ServerOptions& options) { options.models.clear(); });
  const auto expect = [&server](int health, const char* when) {
    for (const char* service :
         {"", "palimpsest.v1.GenerationService", "palimpsest.v1.SessionService", "palimpsest.v1.SnapshotService"}) {
      EXPECT_EQ(CheckHealth(server.channel(), service), health) << service << when;
    }
    EXPECT_EQ(CheckHealth(server.channel(), "palimpsest.v1.ModelService"), kServing) << "it can load one" << when;
    EXPECT_EQ(server.Metric("palimpsest_ready"), health == kServing ? 1 : 0) << when;
  };
  expect(kNotServing, " at the start");
  ASSERT_TRUE(server.Load("mine", "tiny").ok());
  expect(kServing, " with one");
  ASSERT_TRUE(server.Load("another", "other").ok());
  ASSERT_TRUE(server.Unload("mine").ok());
  expect(kServing, " with the other");
  EXPECT_FALSE(server.Load("damaged", "nowhere").ok());
  expect(kServing, " after one that cannot be loaded");
  ASSERT_TRUE(server.Unload("another").ok());
  expect(kNotServing, " at the end");
}

TEST(Reflection, ListsTheServices) {
  TestServer server;
  // grpc.reflection.v1alpha: request { string list_services = 7 }.
  grpc::GenericStub stub(server.channel());
  grpc::ClientContext context;
  grpc::CompletionQueue queue;
  const auto call =
      stub.PrepareCall(&context, "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", &queue);
  const auto next = [&queue] {
    void* tag = nullptr;
    bool ok = false;
    return queue.Next(&tag, &ok) && ok;
  };
  call->StartCall(nullptr);
  ASSERT_TRUE(next());
  grpc::Slice slice(std::string("\x3a\x01*"));
  call->Write(grpc::ByteBuffer(&slice, 1), nullptr);
  ASSERT_TRUE(next());
  grpc::ByteBuffer received;
  call->Read(&received, nullptr);
  ASSERT_TRUE(next());
  grpc::Slice answer;
  ASSERT_TRUE(received.DumpToSingleSlice(&answer).ok());
  const std::string text(reinterpret_cast<const char*>(answer.begin()), answer.size());
  for (const char* service : {"palimpsest.v1.GenerationService", "palimpsest.v1.SessionService",
                              "palimpsest.v1.SnapshotService", "palimpsest.v1.ModelService", "grpc.health.v1.Health"}) {
    EXPECT_THAT(text, HasSubstr(service));
  }
  call->WritesDone(nullptr);
  next();
  grpc::Status status;
  call->Finish(&status, nullptr);
  next();
  EXPECT_TRUE(status.ok());
  queue.Shutdown();
}

TEST(Drain, LetsWhatRunsEndWithinTheGraceAndTurnsNewCallsAway) {
  TestServer server;
  v1::GenerateRequest request = Ask("hello", 3000);
  grpc::ClientContext context;
  const auto reader = server.generation().Generate(&context, request);
  v1::GenerateResponse message;
  ASSERT_TRUE(reader->Read(&message));

  std::thread draining([&] { server.server().Drain(absl::Seconds(120)); });
  const absl::Time give_up = absl::Now() + absl::Seconds(20);
  while (CheckHealth(server.channel(), "") != kNotServing && absl::Now() < give_up) {
    absl::SleepFor(absl::Milliseconds(1));
  }
  EXPECT_EQ(CheckHealth(server.channel(), ""), kNotServing);
  const Reply late = server.Generate(Ask("hello", 1));
  EXPECT_EQ(late.status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(DetailsOf(late.status).reason, "SERVER_DRAINING");

  int64_t generated = message.tokens_size();
  while (reader->Read(&message)) generated += message.tokens_size();
  EXPECT_TRUE(reader->Finish().ok());
  EXPECT_EQ(generated, 3000);
  draining.join();
}

TEST(Drain, EndsWhatIsLeftAfterTheGraceWithUnavailableAndSaysWhereTheSessionStands) {
  TestServer server;
  v1::GenerateRequest request = Ask("hello", 60000);
  request.set_session(server.NewSession());
  grpc::ClientContext context;
  const auto reader = server.generation().Generate(&context, request);
  v1::GenerateResponse message;
  ASSERT_TRUE(reader->Read(&message));
  std::thread draining([&] { server.server().Drain(absl::Milliseconds(50)); });
  int64_t position = message.position();
  while (reader->Read(&message)) position = message.position();
  const grpc::Status status = reader->Finish();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(DetailsOf(status).reason, "SERVER_DRAINING");
  EXPECT_GT(DetailsOf(status).retry_seconds, 0);
  EXPECT_THAT(status.error_message(), HasSubstr(absl::StrCat("the session stands at position ", position)));
  draining.join();
}

TEST(Drain, IsNotHeldUpByAReaderWhoNeverReads) {
  TestServer server;
  v1::GenerateRequest request = Ask("hello", 60000);
  request.set_top_logprobs(20);
  grpc::ClientContext context;
  const auto reader = server.generation().Generate(&context, request);
  v1::GenerateResponse message;
  ASSERT_TRUE(reader->Read(&message));
  const absl::Time begin = absl::Now();
  server.server().Drain(absl::Milliseconds(100));
  EXPECT_LT(absl::Now() - begin, absl::Seconds(20));
  while (reader->Read(&message)) {
  }
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::UNAVAILABLE);
}

TEST(Metrics, AreAllThere) {
  TestServer server;
  server.Generate(Ask("hello", 4));
  server.AwaitMetric("palimpsest_request_duration_seconds_count{method=\"palimpsest.v1.GenerationService/Generate\"}",
                     1);
  const std::string page = server.Scrape();
  for (const char* name :
       {"palimpsest_time_to_first_token_seconds_bucket{model=\"tiny\",le=\"0.0005\"}",
        "palimpsest_time_per_output_token_seconds_bucket{model=\"tiny\",le=\"0.003\"}",
        "palimpsest_request_duration_seconds_count{method=\"palimpsest.v1.GenerationService/Generate\"}",
        "palimpsest_queue_time_seconds_sum{model=\"tiny\"}",
        "palimpsest_prompt_tokens_total{model=\"tiny\"}",
        "palimpsest_generated_tokens_total{model=\"tiny\"}",
        "palimpsest_cached_tokens_total{model=\"tiny\"}",
        "palimpsest_requests_total{code=\"OK\",method=\"palimpsest.v1.GenerationService/Generate\"}",
        "palimpsest_batch_rows_count{model=\"tiny\"}",
        "palimpsest_batch_sequences_count{model=\"tiny\"}",
        "palimpsest_iteration_seconds_count{model=\"tiny\"}",
        "palimpsest_iterations_total{model=\"tiny\"}",
        "palimpsest_requests_running{model=\"tiny\"}",
        "palimpsest_requests_waiting{model=\"tiny\"}",
        "palimpsest_requests_waiting_max{model=\"tiny\"}",
        "palimpsest_requests_paused{model=\"tiny\"}",
        "palimpsest_queue_oldest_seconds{model=\"tiny\"}",
        "palimpsest_wasted_tokens_total{model=\"tiny\"}",
        "palimpsest_iteration_minimum_bytes_total{model=\"tiny\"}",
        "palimpsest_iteration_minimum_flops_total{model=\"tiny\"}",
        "palimpsest_finished_total{model=\"tiny\",reason=\"length\"}",
        "palimpsest_finished_total{model=\"tiny\",reason=\"not_finite\"}",
        "palimpsest_ready",
        "palimpsest_model_ready{model=\"tiny\"}",
        "palimpsest_model_parameters{model=\"tiny\"}",
        "palimpsest_model_weight_bytes{model=\"tiny\"}",
        "palimpsest_model_state_bytes{model=\"tiny\"}",
        "palimpsest_sessions{model=\"tiny\",condition=\"idle\"}",
        "palimpsest_sessions{model=\"tiny\",condition=\"active\"}",
        "palimpsest_sessions{model=\"tiny\",condition=\"quarantined\"}",
        "palimpsest_sessions_max",
        "palimpsest_snapshots{model=\"tiny\"}",
        "palimpsest_snapshots_max",
        "palimpsest_slots{model=\"tiny\",condition=\"used\"}",
        "palimpsest_slots{model=\"tiny\",condition=\"free\"}",
        "palimpsest_state_bytes{model=\"tiny\"}",
        "palimpsest_quarantined_total{model=\"tiny\"}",
        "palimpsest_model_info{model=\"tiny\",architecture=\"gated_deltanet\",dtype=\"f32\",backend=\"cpu (",
        "palimpsest_build_info{version=\"",
        "process_start_time_seconds",
        "process_resident_memory_bytes",
        "process_virtual_memory_bytes",
        "process_cpu_seconds_total",
        "process_open_fds",
        "process_max_fds",
        "process_threads"}) {
    EXPECT_THAT(page, HasSubstr(absl::StrCat("\n", name)));
  }
}

TEST(Metrics, MoveWithWhatHappens) {
  TestServer server;
  const auto metric = [&server](const std::string& name) { return server.Metric(name); };
  const std::string session = server.NewSession();
  v1::GenerateRequest request = Ask("hello", 9);
  request.set_session(session);
  ASSERT_TRUE(server.Generate(request).status.ok());
  request.clear_prompt();
  ASSERT_TRUE(server.Generate(request).status.ok());
  server.NewSnapshot(session);
  server.NewSession();
  EXPECT_FALSE(server.Generate(Ask("", 1)).status.ok());
  EXPECT_EQ(server.AwaitMetric(
                "palimpsest_request_duration_seconds_count{method=\"palimpsest.v1.GenerationService/Generate\"}", 3),
            3);

  EXPECT_EQ(metric("palimpsest_prompt_tokens_total{model=\"tiny\"}"), 5);
  EXPECT_EQ(metric("palimpsest_generated_tokens_total{model=\"tiny\"}"), 18);
  EXPECT_EQ(metric("palimpsest_cached_tokens_total{model=\"tiny\"}"), 14);
  EXPECT_EQ(metric("palimpsest_time_to_first_token_seconds_count{model=\"tiny\"}"), 2);
  EXPECT_GT(metric("palimpsest_time_to_first_token_seconds_sum{model=\"tiny\"}"), 0);
  EXPECT_EQ(metric("palimpsest_queue_time_seconds_count{model=\"tiny\"}"), 2);
  EXPECT_EQ(metric("palimpsest_time_per_output_token_seconds_count{model=\"tiny\"}"), 16);
  EXPECT_EQ(metric("palimpsest_requests_total{code=\"OK\",method=\"palimpsest.v1.GenerationService/Generate\"}"), 2);
  EXPECT_EQ(metric("palimpsest_requests_total{code=\"FAILED_PRECONDITION\",method=\"palimpsest.v1.GenerationService/"
                   "Generate\"}"),
            1);
  EXPECT_EQ(metric("palimpsest_request_duration_seconds_count{method=\"palimpsest.v1.GenerationService/Generate\"}"),
            3);
  // One chunk for the first prompt, then a token each.
  EXPECT_EQ(metric("palimpsest_batch_rows_count{model=\"tiny\"}"),
            metric("palimpsest_iterations_total{model=\"tiny\"}"));
  EXPECT_EQ(metric("palimpsest_batch_rows_sum{model=\"tiny\"}"), 4 + 18);
  EXPECT_EQ(metric("palimpsest_sessions{model=\"tiny\",condition=\"idle\"}"), 2);
  EXPECT_EQ(metric("palimpsest_snapshots{model=\"tiny\"}"), 1);
  EXPECT_GT(metric("palimpsest_state_bytes{model=\"tiny\"}"), 0);
  EXPECT_EQ(metric("palimpsest_requests_total{code=\"INTERNAL\",method=\"palimpsest.v1.GenerationService/Generate\"}"),
            0);
  EXPECT_EQ(metric("palimpsest_finished_total{model=\"tiny\",reason=\"length\"}"), 2);
  EXPECT_EQ(metric("palimpsest_wasted_tokens_total{model=\"tiny\"}"), 0);
  EXPECT_EQ(metric("palimpsest_queue_oldest_seconds{model=\"tiny\"}"), 0);
  EXPECT_EQ(metric("palimpsest_requests_paused{model=\"tiny\"}"), 0);
  EXPECT_EQ(metric("palimpsest_ready"), 1);
  EXPECT_EQ(metric("palimpsest_model_ready{model=\"tiny\"}"), 1);
  // Each iteration had one sequence, whose state came and went, and 18 of 19 made logits with all of the weights.
  EXPECT_GT(metric("palimpsest_iteration_minimum_bytes_total{model=\"tiny\"}"),
            19 * 2 * metric("palimpsest_model_state_bytes{model=\"tiny\"}"));
  EXPECT_LT(metric("palimpsest_iteration_minimum_bytes_total{model=\"tiny\"}"),
            19 * (2 * metric("palimpsest_model_state_bytes{model=\"tiny\"}") +
                  metric("palimpsest_model_weight_bytes{model=\"tiny\"}")));
  EXPECT_EQ(metric("palimpsest_slots{model=\"tiny\",condition=\"free\"}"), 4);
  EXPECT_GT(metric("process_cpu_seconds_total"), 0);
  EXPECT_GT(metric("process_open_fds"), 3);
  EXPECT_GT(metric("process_threads"), 2);
  EXPECT_NEAR(metric("process_start_time_seconds"), absl::ToUnixSeconds(absl::Now()), 600);

  v1::GenerateRequest poison = Ask("", 1);
  poison.mutable_tokens()->add_ids(testing::kPoisonToken);
  poison.mutable_tokens()->add_ids(1);
  server.Generate(poison);
  EXPECT_EQ(metric("palimpsest_quarantined_total{model=\"tiny\"}"), 1);
  EXPECT_EQ(metric("palimpsest_finished_total{model=\"tiny\",reason=\"not_finite\"}"), 1);
  EXPECT_GT(metric("palimpsest_wasted_tokens_total{model=\"tiny\"}"), 0);

  grpc::ClientContext context;
  const auto reader = server.generation().Generate(&context, Ask("hello", 60000));
  v1::GenerateResponse message;
  ASSERT_TRUE(reader->Read(&message));
  EXPECT_EQ(metric("palimpsest_slots{model=\"tiny\",condition=\"used\"}"), 1);
  EXPECT_EQ(metric("palimpsest_requests_running{model=\"tiny\"}"), 1);
  context.TryCancel();
  reader->Finish();
}

TEST(Metrics, ForgetAModelThatIsUnloaded) {
  TestServer server;
  ASSERT_TRUE(server.Load("mine", "tiny").ok());
  EXPECT_EQ(server.Metric("palimpsest_model_ready{model=\"mine\"}"), 1);
  ASSERT_TRUE(server.Unload("mine").ok());
  EXPECT_TRUE(std::isnan(server.Metric("palimpsest_slots{model=\"mine\",condition=\"free\"}")));
  EXPECT_TRUE(std::isnan(server.Metric("palimpsest_snapshots{model=\"mine\"}")));
  EXPECT_TRUE(std::isnan(server.Metric("palimpsest_model_ready{model=\"mine\"}")));
}

// A self-signed certificate for localhost, and its key, by the openssl library's own tool in the test's folder.
bool MakeCertificate(const std::string& folder) {
  const std::string command = absl::StrCat(
      "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost ",
      "-addext subjectAltName=DNS:localhost -keyout ", folder, "/key.pem -out ", folder, "/cert.pem 2>/dev/null");
  return std::system(command.c_str()) == 0;
}

std::string FileText(const std::string& path) {
  std::string text;
  FILE* file = std::fopen(path.c_str(), "rb");
  EXPECT_NE(file, nullptr);
  if (file == nullptr) return text;
  for (int c = 0; (c = std::fgetc(file)) != EOF;) text.push_back(static_cast<char>(c));
  std::fclose(file);
  return text;
}

TEST(Tls, ServesThoseWhoTrustTheCertificateAndMayAskForTheirs) {
  TemporaryFolder folder;
  ASSERT_TRUE(MakeCertificate(folder.path())) << "needs the openssl tool: ./dev setup";
  TestServer server([&](ServerOptions& options) {
    options.tls_certificate_file = folder.path() + "/cert.pem";
    options.tls_key_file = folder.path() + "/key.pem";
    options.tls_client_ca_file = folder.path() + "/cert.pem";
  });
  const auto list = [&](const std::shared_ptr<grpc::ChannelCredentials>& credentials) {
    const auto channel = grpc::CreateChannel(absl::StrCat("localhost:", server.server().port()), credentials);
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(20));
    v1::ListModelsResponse response;
    return v1::ModelService::NewStub(channel)->ListModels(&context, {}, &response);
  };
  grpc::SslCredentialsOptions mine;
  mine.pem_root_certs = FileText(folder.path() + "/cert.pem");
  EXPECT_EQ(list(grpc::SslCredentials(mine)).error_code(), grpc::StatusCode::UNAVAILABLE);  // shows none
  mine.pem_cert_chain = mine.pem_root_certs;
  mine.pem_private_key = FileText(folder.path() + "/key.pem");
  const grpc::Status status = list(grpc::SslCredentials(mine));
  EXPECT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(list(grpc::InsecureChannelCredentials()).error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(server.Scrape(), "") << "the metrics are there in plain text";
}

TEST(Tls, TheMetricsMayBePlainText) {
  TemporaryFolder folder;
  ASSERT_TRUE(MakeCertificate(folder.path())) << "needs the openssl tool: ./dev setup";
  TestServer server([&](ServerOptions& options) {
    options.tls_certificate_file = folder.path() + "/cert.pem";
    options.tls_key_file = folder.path() + "/key.pem";
    options.metrics_tls = ServerOptions::MetricsTls::kOff;
  });
  EXPECT_THAT(server.Scrape(), HasSubstr("palimpsest_ready 1"));
}

TEST(Metrics, MayBeForThoseOnlyWhoMayReadThem) {
  std::string asked = "nobody";
  TestServer server([&](ServerOptions& options) {
    options.authorize_metrics = [&asked](std::string_view authorization) {
      asked = authorization;
      return false;
    };
  });
  EXPECT_EQ(server.Scrape(), "");
  EXPECT_EQ(asked, "");
}

struct OptionRow {
  const char* name;
  std::function<void(ServerOptions&)> change;
  absl::StatusCode code;
  const char* words;
};

class WrongOption : public ::testing::TestWithParam<OptionRow> {};

TEST_P(WrongOption, IsRefusedAtTheStartWithTheReason) {
  TemporaryFolder folder;
  testing::WriteRandomCheckpoint(folder.path() + "/tiny", {});
  ServerOptions options = TestServer::DefaultOptions(folder.path());
  GetParam().change(options);
  const auto server = Server::Start(options);
  ASSERT_FALSE(server.ok());
  EXPECT_EQ(server.status().code(), GetParam().code) << server.status();
  EXPECT_THAT(std::string(server.status().message()), HasSubstr(GetParam().words));
}

constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
const OptionRow kOptionRows[] = {
    {"port", [](auto& o) { o.port = 70000; }, kInvalid, "port is 70000; accepted: 0 (any free one) to 65535"},
    {"slots", [](auto& o) { o.engine.slots = -1; }, kInvalid, "slots is -1; accepted: 0 to 65536"},
    {"threads", [](auto& o) { o.engine.threads = -1; }, kInvalid, "threads is -1; accepted: 0 (one per processor)"},
    {"prefill", [](auto& o) { o.engine.prefill_budget = -5; }, kInvalid, "prefill_budget is -5; accepted: 0 to"},
    {"default_tokens", [](auto& o) { o.limits.default_max_tokens = 100000; }, kInvalid,
     "default_max_tokens is 100000; accepted: 0 to 65536"},
    {"message", [](auto& o) { o.limits.max_message_bytes = int64_t{1} << 40; }, kInvalid, "max_message_bytes is"},
    {"ttl", [](auto& o) { o.sessions.default_ttl = absl::ZeroDuration(); }, kInvalid, "--session_ttl is 0"},
    {"model_name", [](auto& o) { o.models[0].id = "Not An Id"; }, kInvalid, "--model is \"Not An Id="},
    {"model_twice", [](auto& o) { o.models.push_back(o.models[0]); }, absl::StatusCode::kAlreadyExists,
     "models/tiny is there already"},
    {"model_missing", [](auto& o) { o.models[0].folder += "/nowhere"; }, absl::StatusCode::kNotFound, "models/tiny: "},
    {"metrics_address", [](auto& o) { o.metrics_address = "nonsense"; }, kInvalid,
     "metrics_address is \"nonsense\"; accepted: host:port"},
    {"certificate_alone", [](auto& o) { o.tls_certificate_file = "cert.pem"; }, kInvalid,
     "--tls_cert is given without --tls_key; accepted: both"},
    {"metrics_tls_alone", [](auto& o) { o.metrics_tls = ServerOptions::MetricsTls::kOn; }, kInvalid,
     "--metrics_tls is on without --tls_cert and --tls_key"},
    {"certificate_that_is_none",
     [](auto& o) { o.tls_certificate_file = o.tls_key_file = o.models[0].folder + "/config.json"; }, kInvalid,
     "--tls_cert holds no certificate in PEM form"},
    {"certificate_missing", [](auto& o) { o.tls_certificate_file = o.tls_key_file = "/nowhere/cert.pem"; }, kInvalid,
     "--tls_cert is /nowhere/cert.pem, which cannot be read"},
};
INSTANTIATE_TEST_SUITE_P(Table, WrongOption, ::testing::ValuesIn(kOptionRows),
                         [](const auto& info) { return std::string(info.param.name); });

TEST(Start, APortInUseIsRefused) {
  TestServer first;
  ServerOptions options = TestServer::DefaultOptions(first.checkpoints());
  options.port = first.server().port();
  const auto second = Server::Start(options);
  ASSERT_FALSE(second.ok());
  EXPECT_EQ(second.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(second.status().message()), HasSubstr("cannot be bound: in use"));

  options.port = 0;
  options.metrics_address = absl::StrCat("127.0.0.1:", first.server().metrics_port());
  const auto third = Server::Start(options);
  ASSERT_FALSE(third.ok());
  EXPECT_EQ(third.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(third.status().message()), HasSubstr("metrics_address"));
}

}  // namespace
}  // namespace palimpsest
