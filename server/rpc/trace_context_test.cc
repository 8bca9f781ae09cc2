// Trace Context by the rules of its specification, and end to end: in the answer's metadata.
#include "server/rpc/trace_context.h"

#include <gmock/gmock.h>
#include <grpcpp/client_context.h>
#include <gtest/gtest.h>

#include <set>
#include <string>

#include "absl/strings/str_cat.h"
#include "server/rpc/testing/test_server.h"

namespace palimpsest {
namespace {

using ::testing::IsEmpty;
using ::testing::MatchesRegex;
using ::testing::StartsWith;

constexpr char kTrace[] = "4bf92f3577b34da6a3ce929d0e0e4736";
constexpr char kSpan[] = "00f067aa0ba902b7";
constexpr char kParent[] = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

TEST(TraceContext, ACallIsASpanOfItsCallersTrace) {
  const TraceContext context = ContinueTrace({kParent}, {"congo=t61rcWkgMzE,rojo=00f067aa0ba902b7"});
  EXPECT_EQ(context.trace_id, kTrace);
  EXPECT_EQ(context.parent_id, kSpan);
  EXPECT_EQ(context.flags, 1);
  EXPECT_EQ(context.trace_state, "congo=t61rcWkgMzE,rojo=00f067aa0ba902b7");
  EXPECT_THAT(context.span_id, MatchesRegex("[0-9a-f]+"));
  EXPECT_EQ(context.span_id.size(), 16);
  EXPECT_NE(context.span_id, kSpan);
  EXPECT_EQ(context.ToString(), absl::StrCat("00-", kTrace, "-", context.span_id, "-01"));
}

TEST(TraceContext, NoIdComesTwice) {
  std::set<std::string> spans, traces;
  for (int i = 0; i < 1000; ++i) {
    const TraceContext context = ContinueTrace({}, {});
    spans.insert(context.span_id);
    traces.insert(context.trace_id);
  }
  EXPECT_EQ(spans.size(), 1000);
  EXPECT_EQ(traces.size(), 1000);
}

TEST(TraceContext, WithoutAParentATraceBegins) {
  const TraceContext context = ContinueTrace({}, {"congo=t61rcWkgMzE"});
  EXPECT_EQ(context.trace_id.size(), 32);
  EXPECT_THAT(context.parent_id, IsEmpty());
  EXPECT_THAT(context.trace_state, IsEmpty());
  EXPECT_EQ(context.flags, 2);
}

TEST(TraceContext, LaterVersionsAreReadAsFarAsTheFirstGoes) {
  for (const std::string tail : {"", "-", "-what-the-future-brings"}) {
    const TraceContext context =
        ContinueTrace({absl::StrCat("cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-ff", tail)}, {});
    EXPECT_EQ(context.trace_id, kTrace) << tail;
    EXPECT_EQ(context.flags, 3) << "flags that are not known go out as zero";
  }
}

TEST(TraceContext, AnInvalidParentBeginsANewTrace) {
  const std::string rows[] = {
      "",
      "00",
      "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",      // no flags
      "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-1",    // short flags
      "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-",  // 00 ends there
      "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-x",
      "cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01x",  // no dash before more
      "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",   // no version
      "0x-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
      "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",  // upper case
      "00-4bf92f3577b34da6a3ce929d0e0e473-000f067aa0ba902b7-01",  // dashes elsewhere
      "00-4bf92f3577b34da6a3ce929d0e0e473g-00f067aa0ba902b7-01",  // not hexadecimal
      "00-00000000000000000000000000000000-00f067aa0ba902b7-01",  // zero
      "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
      "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0X",
      "00_4bf92f3577b34da6a3ce929d0e0e4736_00f067aa0ba902b7_01",
      " 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
  };
  for (const std::string& row : rows) {
    const TraceContext context = ContinueTrace({row}, {"congo=t61rcWkgMzE"});
    EXPECT_NE(context.trace_id, kTrace) << row;
    EXPECT_EQ(context.trace_id.size(), 32) << row;
    EXPECT_THAT(context.parent_id, IsEmpty()) << row;
    EXPECT_THAT(context.trace_state, IsEmpty()) << row;
  }
  EXPECT_NE(ContinueTrace({kParent, kParent}, {}).trace_id, kTrace) << "given twice";
}

TEST(TraceContext, SeveralStatesAreOneList) {
  EXPECT_EQ(ContinueTrace({kParent}, {"a=1", "b=2, ,c=3", "t@v=x y"}).trace_state, "a=1,b=2,c=3,t@v=x y");
}

TEST(TraceContext, AnInvalidStateIsDroppedAndTheTraceGoesOn) {
  std::string many = "k0=v";
  for (int i = 1; i < 33; ++i) absl::StrAppend(&many, ",k", i, "=v");
  const std::string rows[] = {"novalue",
                              "Upper=1",
                              "a=",
                              "=1",
                              "a=1=2",
                              "a=1,a=2",
                              "a@b@c=1",
                              "a@1=1",
                              "a b=1",
                              "a=\x01",
                              many,
                              absl::StrCat("a=", std::string(257, 'x')),
                              absl::StrCat("a=", std::string(252, 'x'), ",b=", std::string(256, 'x')),
                              absl::StrCat("a", std::string(256, 'x'), "=1"),
                              absl::StrCat("a@", std::string(15, 'x'), "=1")};
  for (const std::string& row : rows) {
    const TraceContext context = ContinueTrace({kParent}, {row});
    EXPECT_EQ(context.trace_id, kTrace) << row;
    EXPECT_THAT(context.trace_state, IsEmpty()) << row;
  }
}

TEST(TraceContext, TheAnswersMetadataNamesTheCallsSpan) {
  testing::TestServer server;
  const auto response_of = [&](const std::string& traceparent) {
    grpc::ClientContext context;
    if (!traceparent.empty()) context.AddMetadata("traceparent", traceparent);
    v1::ListModelsResponse response;
    EXPECT_TRUE(server.models().ListModels(&context, {}, &response).ok());
    const auto found = context.GetServerInitialMetadata().find("traceresponse");
    if (found == context.GetServerInitialMetadata().end()) return std::string();
    return std::string(found->second.data(), found->second.size());
  };
  EXPECT_THAT(response_of(kParent), StartsWith(absl::StrCat("00-", kTrace, "-")));
  EXPECT_NE(response_of(kParent), kParent);
  EXPECT_EQ(response_of("").size(), 55);
  EXPECT_EQ(response_of("not one").size(), 55);
}

}  // namespace
}  // namespace palimpsest
