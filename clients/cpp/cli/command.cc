#include "clients/cpp/cli/command.h"

#include <google/protobuf/util/json_util.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "clients/cpp/token.h"
#include "clients/cpp/whole_file.h"

namespace palimpsest::cli {
namespace {

constexpr absl::string_view kUsagePayload = "palimpsest/usage";

}  // namespace

void ServerFlags::Add(FlagSet& flags) {
  flags.Group("Server");
  flags.Add("server", &server, "ADDRESS",
            "where the server listens: host:port or unix:/path. Also read from the environment variable "
            "PALIMPSEST_SERVER");
  flags.Add("timeout", &timeout, "TIME", "give up on a call after this long");
  flags.Add("connect_timeout", &connect_timeout, "TIME", "give up connecting after this long");
  flags.Add("round_robin", &round_robin, "",
            "spread calls over all addresses of the server's name; not for calls on a session, which one server has");
  flags.Add(
      "traceparent", &traceparent, "CONTEXT",
      "the W3C trace context that the calls belong to: the server logs them under its trace id. Also read from the "
      "environment variables TRACEPARENT and TRACESTATE");
  flags.Add("tls", &tls, "", "encrypt, and check the server's certificate");
  CredentialFlags::Add(flags);
}

void CredentialFlags::Add(FlagSet& flags) {
  flags.Add("ca_file", &ca_file, "FILE", "certificates (PEM) to check the server's against; implies --tls");
  flags.Add("certificate_file", &certificate_file, "FILE", "own certificate (PEM), for servers that ask for one");
  flags.Add("key_file", &key_file, "FILE", "key (PEM) of --certificate_file");
  flags.Add("token_file", &token_file, "FILE",
            "a file with the token that says who calls. Without it, the environment variable PALIMPSEST_TOKEN is the "
            "token");
  flags.Add("allow_insecure_token", &allow_insecure_token, "",
            "send the token to another machine without encryption, where anybody on the way can read it");
}

absl::StatusOr<std::string> CredentialFlags::Token() const {
  if (!token_file.empty()) return client::ReadTokenFile(token_file);
  const char* variable = std::getenv("PALIMPSEST_TOKEN");
  const std::string token(absl::StripAsciiWhitespace(variable == nullptr ? "" : variable));
  if (!token.empty()) RETURN_IF_ERROR(client::CheckToken(token, "the environment variable PALIMPSEST_TOKEN"));
  return token;
}

absl::StatusOr<std::unique_ptr<client::Client>> Context::Connect() const {
  client::ConnectOptions options;
  options.tls = server.tls;
  options.ca_file = server.ca_file;
  options.certificate_file = server.certificate_file;
  options.key_file = server.key_file;
  options.connect_timeout = server.connect_timeout;
  options.round_robin = server.round_robin;
  ASSIGN_OR_RETURN(options.token, server.Token());
  options.allow_insecure_token = server.allow_insecure_token;
  absl::StatusOr<std::unique_ptr<client::Client>> client = client::Client::Connect(server.server, options);
  if (absl::IsUnavailable(client.status())) {
    return absl::UnavailableError(absl::StrCat(client.status().message(),
                                               "\n  is palimpsest-server running there? --server or the environment "
                                               "variable PALIMPSEST_SERVER say where"));
  }
  return client;
}

absl::Status UsageError(absl::string_view message) {
  absl::Status status = absl::InvalidArgumentError(message);
  status.SetPayload(kUsagePayload, absl::Cord(" "));
  return status;
}

bool IsUsageError(const absl::Status& status) { return status.GetPayload(kUsagePayload).has_value(); }

std::string ResourceName(absl::string_view collection, absl::string_view name) {
  if (name.empty() || absl::StartsWith(name, absl::StrCat(collection, "/"))) return std::string(name);
  return absl::StrCat(collection, "/", name);
}

absl::StatusOr<std::string> ReadAll(const std::string& path) {
  const bool is_stdin = path == "-";
  std::FILE* file = is_stdin ? stdin : std::fopen(path.c_str(), "rb");
  if (file == nullptr) return absl::ErrnoToStatus(errno, absl::StrCat("cannot read ", path));
  std::string bytes;
  char piece[1 << 16];
  for (size_t count; (count = std::fread(piece, 1, sizeof(piece), file)) > 0;) bytes.append(piece, count);
  const bool failed = std::ferror(file) != 0;
  const int error = errno;
  if (!is_stdin) std::fclose(file);
  if (failed) return absl::ErrnoToStatus(error, absl::StrCat("cannot read ", path));
  return bytes;
}

absl::Status WriteAll(const std::string& path, absl::string_view bytes, mode_t mode) {
  if (path == "-") {
    const bool written = std::fwrite(bytes.data(), 1, bytes.size(), stdout) == bytes.size() && std::fflush(stdout) == 0;
    return written ? absl::OkStatus() : absl::ErrnoToStatus(errno, "cannot write to stdout");
  }
  ASSIGN_OR_RETURN(client::WholeFile file, client::WholeFile::Create(path, mode));
  RETURN_IF_ERROR(file.Write({bytes.data(), bytes.size()}));
  return file.Commit();
}

size_t FindInvalidUtf8(absl::string_view text) {
  size_t at = 0;
  while (at < text.size()) {
    const auto byte = [&](size_t i) { return at + i < text.size() ? static_cast<unsigned char>(text[at + i]) : 0; };
    const unsigned char lead = byte(0);
    size_t length = 0;
    if (lead < 0x80) length = 1;
    if (lead >= 0xc2 && lead <= 0xdf) length = 2;
    if (lead >= 0xe0 && lead <= 0xef) length = 3;
    if (lead >= 0xf0 && lead <= 0xf4) length = 4;
    if (length == 0) return at;
    for (size_t i = 1; i < length; ++i) {
      if ((byte(i) & 0xc0) != 0x80) return at;
    }
    // Overlong forms, surrogates and what lies beyond U+10FFFF.
    if ((lead == 0xe0 && byte(1) < 0xa0) || (lead == 0xed && byte(1) > 0x9f) || (lead == 0xf0 && byte(1) < 0x90) ||
        (lead == 0xf4 && byte(1) > 0x8f)) {
      return at;
    }
    at += length;
  }
  return absl::string_view::npos;
}

absl::Status CheckUtf8(absl::string_view text, absl::string_view source) {
  const size_t at = FindInvalidUtf8(text);
  if (at == absl::string_view::npos) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(source, ": byte ", at, " is not part of valid UTF-8"));
}

absl::StatusOr<std::string> Unescape(absl::string_view flag, const std::string& text) {
  std::string result;
  std::string error;
  if (!absl::CUnescape(text, &result, &error)) return UsageError(absl::StrCat("--", flag, ": ", error));
  RETURN_IF_ERROR(CheckUtf8(result, absl::StrCat("--", flag)));
  return result;
}

std::string ToJson(const google::protobuf::Message& message, bool indented) {
  google::protobuf::util::JsonPrintOptions options;
  options.preserve_proto_field_names = true;
  options.add_whitespace = indented;
  std::string json;
  (void)google::protobuf::util::MessageToJsonString(message, &json, options);  // fails for Any only; we have none
  return json;
}

void SetDuration(absl::Duration time, google::protobuf::Duration* proto) {
  proto->set_seconds(absl::IDivDuration(time, absl::Seconds(1), &time));
  proto->set_nanos(static_cast<int32_t>(absl::ToInt64Nanoseconds(time)));
}

std::string FormatTime(bool set, int64_t seconds) {
  if (!set) return "-";
  return absl::FormatTime("%Y-%m-%d %H:%M:%S", absl::FromUnixSeconds(seconds), absl::LocalTimeZone());
}

}  // namespace palimpsest::cli
