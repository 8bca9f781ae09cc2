// What a tool learns that has nothing but reflection: every service listed is described, with all that it is made of.
#include <gmock/gmock.h>
#include <google/protobuf/descriptor.pb.h>
#include <google/protobuf/message.h>
#include <grpcpp/generic/generic_stub.h>
#include <gtest/gtest.h>

#include <memory>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "server/rpc/testing/test_server.h"

namespace palimpsest::testing {
namespace {

using google::protobuf::Descriptor;
using google::protobuf::DescriptorPool;
using google::protobuf::FileDescriptorProto;
using google::protobuf::Message;
using google::protobuf::MessageFactory;

std::unique_ptr<Message> NewMessage(const std::string& name) {
  const Descriptor* type =
      DescriptorPool::generated_pool()->FindMessageTypeByName(absl::StrCat("grpc.reflection.v1alpha.", name));
  if (type == nullptr) return nullptr;
  return std::unique_ptr<Message>(MessageFactory::generated_factory()->GetPrototype(type)->New());
}

// The answer to a request with one field set.
std::unique_ptr<Message> Ask(const std::shared_ptr<grpc::Channel>& channel, const std::string& field,
                             const std::string& value) {
  std::unique_ptr<Message> request = NewMessage("ServerReflectionRequest");
  std::unique_ptr<Message> response = NewMessage("ServerReflectionResponse");
  if (request == nullptr || response == nullptr) return nullptr;
  request->GetReflection()->SetString(request.get(), request->GetDescriptor()->FindFieldByName(field), value);

  grpc::GenericStub stub(channel);
  grpc::ClientContext context;
  grpc::CompletionQueue queue;
  const auto next = [&queue] {
    void* tag = nullptr;
    bool ok = false;
    return queue.Next(&tag, &ok) && ok;
  };
  const auto call =
      stub.PrepareCall(&context, "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", &queue);
  call->StartCall(nullptr);
  EXPECT_TRUE(next());
  const std::string bytes = request->SerializeAsString();
  grpc::Slice slice(bytes);
  call->Write(grpc::ByteBuffer(&slice, 1), nullptr);
  EXPECT_TRUE(next());
  grpc::ByteBuffer received;
  call->Read(&received, nullptr);
  EXPECT_TRUE(next());
  grpc::Slice answer;
  EXPECT_TRUE(received.DumpToSingleSlice(&answer).ok());
  EXPECT_TRUE(response->ParseFromArray(answer.begin(), static_cast<int>(answer.size())));
  call->WritesDone(nullptr);
  next();
  grpc::Status status;
  call->Finish(&status, nullptr);
  next();
  EXPECT_TRUE(status.ok()) << status.error_message();
  queue.Shutdown();
  return response;
}

const Message& Part(const Message& message, const std::string& field) {
  return message.GetReflection()->GetMessage(message, message.GetDescriptor()->FindFieldByName(field));
}

// The files of an answer; empty if it is an error.
std::vector<FileDescriptorProto> Files(const Message& response) {
  const Message& files = Part(response, "file_descriptor_response");
  const auto* field = files.GetDescriptor()->FindFieldByName("file_descriptor_proto");
  std::vector<FileDescriptorProto> parsed(files.GetReflection()->FieldSize(files, field));
  for (size_t i = 0; i < parsed.size(); ++i) {
    EXPECT_TRUE(parsed[i].ParseFromString(files.GetReflection()->GetRepeatedString(files, field, static_cast<int>(i))));
  }
  return parsed;
}

TEST(ReflectionTest, EveryListedServiceIsDescribedWithAllItNeeds) {
  TestServer server;
  const std::unique_ptr<Message> list = Ask(server.channel(), "list_services", "*");
  ASSERT_TRUE(list != nullptr);
  const Message& services = Part(*list, "list_services_response");
  const auto* field = services.GetDescriptor()->FindFieldByName("service");
  std::set<std::string> names;
  for (int i = 0; i < services.GetReflection()->FieldSize(services, field); ++i) {
    const Message& service = services.GetReflection()->GetRepeatedMessage(services, field, i);
    names.insert(service.GetReflection()->GetString(service, service.GetDescriptor()->FindFieldByName("name")));
  }
  EXPECT_THAT(names, ::testing::IsSupersetOf({"palimpsest.v1.GenerationService", "palimpsest.v1.SessionService",
                                              "palimpsest.v1.SnapshotService", "palimpsest.v1.ModelService",
                                              "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"}));
  for (const std::string& name : names) {
    std::set<std::string> known;
    std::vector<FileDescriptorProto> files = Files(*Ask(server.channel(), "file_containing_symbol", name));
    EXPECT_FALSE(files.empty()) << name << " is listed, and not found";
    // What a file needs may come with it, or be asked for.
    while (!files.empty()) {
      const FileDescriptorProto file = files.back();
      files.pop_back();
      if (!known.insert(file.name()).second) continue;
      for (const std::string& needed : file.dependency()) {
        if (known.contains(needed)) continue;
        const std::vector<FileDescriptorProto> more = Files(*Ask(server.channel(), "file_by_filename", needed));
        EXPECT_FALSE(more.empty()) << file.name() << " needs " << needed << ", which is not found";
        files.insert(files.end(), more.begin(), more.end());
      }
    }
  }
}

TEST(ReflectionTest, TheHealthServiceIsTheStandardOne) {
  const auto* service = DescriptorPool::generated_pool()->FindServiceByName("grpc.health.v1.Health");
  ASSERT_NE(service, nullptr);
  EXPECT_EQ(service->method_count(), 2);
  EXPECT_FALSE(service->FindMethodByName("Check")->server_streaming());
  EXPECT_TRUE(service->FindMethodByName("Watch")->server_streaming());
  EXPECT_EQ(service->method(0)->input_type()->FindFieldByName("service")->number(), 1);
  EXPECT_EQ(service->method(0)->output_type()->FindFieldByName("status")->number(), 1);
  const auto* status = service->method(0)->output_type()->FindEnumTypeByName("ServingStatus");
  ASSERT_EQ(status->value_count(), 4);
  const char* const names[] = {"UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN"};
  for (int i = 0; i < 4; ++i) EXPECT_EQ(status->FindValueByNumber(i)->name(), names[i]);
}

}  // namespace
}  // namespace palimpsest::testing
