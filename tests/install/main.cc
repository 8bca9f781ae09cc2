// usage: consumer TARGET: streams a short reply of the server there; says on stderr why there is none.
#include <palimpsest/client.h>
#include <palimpsest/token.h>

#include <cstdio>
#include <memory>

namespace {

using namespace palimpsest;

absl::Status Run(const char* target) {
  if (const absl::Status token = client::CheckToken("a-token", "the test"); !token.ok()) return token;
  client::ConnectOptions options;
  options.connect_timeout = absl::Seconds(1);
  const absl::StatusOr<std::unique_ptr<client::Client>> connected = client::Client::Connect(target, options);
  if (!connected.ok()) return connected.status();

  v1::GenerateRequest request;
  request.set_text("The captain looked at the sea and");
  request.mutable_stop()->set_max_tokens(8);
  const std::unique_ptr<client::GenerateStream> stream = (*connected)->Generate(request);
  for (v1::GenerateResponse message; stream->Next(message);) std::fputs(message.text().c_str(), stdout);
  const absl::StatusOr<v1::GenerateFinish> finish = stream->Finish();
  if (!finish.ok()) return finish.status();
  std::printf("\n%d tokens\n", static_cast<int>(finish->usage().generated_tokens()));
  return absl::OkStatus();
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 2) return 2;
  const absl::Status status = Run(arguments[1]);
  if (!status.ok()) std::fprintf(stderr, "%s\n", status.ToString().c_str());
  return status.ok() ? 0 : 1;
}
