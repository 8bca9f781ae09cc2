#include "clients/cpp/token.h"

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <memory>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

namespace palimpsest::client {
namespace {

constexpr size_t kMaxFileBytes = 1 << 16;  // a token is short: a larger file is another

}  // namespace

absl::Status CheckToken(absl::string_view token, absl::string_view source) {
  const absl::string_view body = token.substr(0, token.find_last_not_of('=') + 1);
  const bool valid = std::all_of(body.begin(), body.end(), [](char c) {
    return absl::ascii_isalnum(static_cast<unsigned char>(c)) || absl::StrContains("-._~+/", c);
  });
  if (!body.empty() && valid) return absl::OkStatus();
  return absl::InvalidArgumentError(
      token.empty() ? absl::StrCat(source, ": there is no token in it")
                    : absl::StrCat(source, ": a token consists of A-Z a-z 0-9 - . _ ~ + / and = at its end; this one ",
                                   "has something else"));
}

absl::StatusOr<std::string> ReadTokenFile(const std::string& path) {
  const std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(std::fopen(path.c_str(), "rbe"), &std::fclose);
  std::string bytes(kMaxFileBytes, '\0');
  if (file != nullptr) bytes.resize(std::fread(bytes.data(), 1, bytes.size(), file.get()));
  if (file == nullptr || std::ferror(file.get())) {
    return absl::ErrnoToStatus(errno, absl::StrCat("cannot read the token file ", path));
  }
  std::string token(absl::StripAsciiWhitespace(bytes));
  const absl::Status status = CheckToken(token, path);
  if (!status.ok()) return status;
  return token;
}

}  // namespace palimpsest::client
