// A call of any method, with any messages, from bytes to status: the method's row in kMethods, doublings of the first
// message, then messages, each counted. Afterwards the server is as it was, and answers others.
#include <iterator>

#include "base/check.h"
#include "server/rpc/methods.h"
#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/fuzzed_server.h"

namespace palimpsest::fuzz {
namespace {

// Files of the corpus name rows by number: new ones go to the end.
constexpr Method kMethods[] = {
    methods::kGenerate,         methods::kScore,          methods::kTokenize,         methods::kDetokenize,
    methods::kCreateSession,    methods::kGetSession,     methods::kListSessions,     methods::kUpdateSession,
    methods::kForkSession,      methods::kDeleteSession,  methods::kCreateSnapshot,   methods::kGetSnapshot,
    methods::kListSnapshots,    methods::kDeleteSnapshot, methods::kDownloadSnapshot, methods::kUploadSnapshot,
    methods::kListModels,       methods::kGetModel,       methods::kLoadModel,        methods::kUnloadModel,
    methods::kInterruptSession,
};

// A refusal has a reason, and none of those that mean that the server, or nobody, was to blame.
void CheckStatus(const grpc::Status& status) {
  if (status.ok()) return;
  const std::string reason = testing::DetailsOf(status).reason;
  PALIMPSEST_CHECK(!reason.empty() && !status.error_message().empty());
  PALIMPSEST_CHECK(status.error_code() != grpc::StatusCode::UNKNOWN);
  PALIMPSEST_CHECK(status.error_code() != grpc::StatusCode::UNIMPLEMENTED);
  PALIMPSEST_CHECK(status.error_code() != grpc::StatusCode::INTERNAL || reason == "NUMBERS_NOT_FINITE");
}

}  // namespace

void Run(std::string_view input) {
  Input in(input);
  const Method& method = kMethods[in.Byte() % std::size(kMethods)];
  const int doublings = in.Byte() % 20;
  std::vector<std::string> messages = {Repeated(in.Counted(), doublings, size_t{1} << 20)};
  while (!in.empty() && messages.size() < 8) messages.emplace_back(in.Counted());

  FuzzedServer& server = FuzzedServer::Get();
  const grpc::Status status = server.Call(method.name, messages);
  CheckStatus(status);
  // What is refused changes nothing; numbers that are not finite take their session with them.
  if (status.ok() || status.error_code() == grpc::StatusCode::INTERNAL) server.Restore();
  server.ExpectWell();
}

}  // namespace palimpsest::fuzz
