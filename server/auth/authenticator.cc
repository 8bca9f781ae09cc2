#include "server/auth/authenticator.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/quote.h"
#include "base/sha256.h"
#include "server/json/json.h"

namespace palimpsest {
namespace {

constexpr size_t kMaxTokenBytes = 4096;

// The whole of a regular file, which is read without waiting for anybody.
absl::StatusOr<std::string> ReadTokensFile(const std::string& path) {
  const auto failed = [&path](const std::string& why) {
    return absl::InvalidArgumentError(
        absl::StrCat("--auth_tokens_file is ", path, ", which ", why, "; accepted: a file of owners, docs/owners.md"));
  };
  const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (file < 0) return failed(absl::StrCat("cannot be read (", std::strerror(errno), ")"));
  struct stat status = {};
  const bool regular = fstat(file, &status) == 0 && S_ISREG(status.st_mode);
  std::string text(OwnerTable::kMaxBytes + 1, '\0');
  size_t size = 0;
  ssize_t got = regular ? 1 : 0;
  while (got > 0 && size < text.size()) {
    got = read(file, text.data() + size, text.size() - size);
    if (got > 0) size += static_cast<size_t>(got);
  }
  const int error = errno;
  close(file);
  if (!regular) return failed("is no regular file");
  if (got < 0) return failed(absl::StrCat("cannot be read (", std::strerror(error), ")"));
  if (size > OwnerTable::kMaxBytes) return failed(absl::StrCat("has more than ", OwnerTable::kMaxBytes, " bytes"));
  text.resize(size);
  return text;
}

// The token of "Bearer TOKEN", or nothing.
std::optional<std::string_view> BearerToken(std::string_view header) {
  constexpr std::string_view kScheme = "bearer ";
  const auto same = [](char a, char b) { return absl::ascii_tolower(static_cast<unsigned char>(a)) == b; };
  if (header.size() <= kScheme.size() || header.size() > kMaxTokenBytes ||
      !std::ranges::equal(header.substr(0, kScheme.size()), kScheme, same)) {
    return std::nullopt;
  }
  return header.substr(kScheme.size());
}

absl::StatusOr<Identity> FindByToken(const OwnerTable& table, std::span<const std::string_view> authorization) {
  if (authorization.size() > 1) {
    return absl::UnauthenticatedError(
        absl::StrCat("the call has ", authorization.size(), " authorization headers; accepted: one"));
  }
  const std::optional<std::string_view> token = BearerToken(authorization[0]);
  if (!token.has_value()) {
    return absl::UnauthenticatedError(
        absl::StrCat("the authorization header is no token; accepted: Bearer and a token, of at most ", kMaxTokenBytes,
                     " bytes in all"));
  }
  const OwnerTable::Owner* const owner = table.FindToken(*token);
  if (owner == nullptr) {
    return absl::UnauthenticatedError(
        "the token is not one that this server knows; it was mistyped or withdrawn: ask whoever runs the server for "
        "one");
  }
  return owner->identity;
}

absl::StatusOr<Identity> FindByCertificate(const OwnerTable& table, std::span<const std::string> certificate) {
  const OwnerTable::Owner* found = nullptr;
  for (const std::string& name : certificate) {
    const OwnerTable::Owner* const owner = table.FindCertificate(name);
    if (owner == nullptr || owner == found) continue;
    if (found != nullptr) {
      return absl::UnauthenticatedError(absl::StrCat("the certificate's names are those of two owners, ",
                                                     found->identity.owner, " and ", owner->identity.owner,
                                                     "; send a token to say which"));
    }
    found = owner;
  }
  if (found != nullptr) return found->identity;
  return absl::UnauthenticatedError(
      absl::StrCat("no owner has a certificate with the name ", Quoted(certificate[0]),
                   "; send a token as metadata, authorization: Bearer TOKEN, or ask whoever runs the server to name ",
                   "the certificate in --auth_tokens_file"));
}

}  // namespace

std::string OwnerOfCertificate(std::string_view name) {
  constexpr size_t kKept = 26;
  const size_t colon = std::min(name.find(':'), name.size());
  const std::string value(name.substr(std::min(colon + 1, name.size())));
  std::string kind(name.substr(0, colon));
  absl::AsciiStrToLower(&kind);
  const auto fits = [](char c) { return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '-'; };
  if (!value.empty() && value.size() <= kKept && std::ranges::all_of(value, fits))
    return absl::StrCat(kind, "-", value);
  std::string kept = value.substr(0, kKept);
  absl::AsciiStrToLower(&kept);
  std::ranges::replace_if(
      kept, [&](char c) { return !fits(c); }, '-');
  std::string owner = absl::StrCat(kind, "-", kept, "-");
  const Sha256Digest digest = Sha256Of(name);
  for (size_t i = 0; i < 16; ++i) absl::StrAppend(&owner, absl::Hex(digest[i], absl::kZeroPad2));
  return owner;
}

absl::StatusOr<std::unique_ptr<Authenticator>> Authenticator::Make(AuthenticatorOptions options) {
  for (const std::string& name : options.admin_identities) {
    if (!IsCertificateName(name)) {
      return absl::InvalidArgumentError(
          absl::StrCat("--admin_identities has ", Quoted(name), "; accepted: URI:..., DNS:... or CN:..."));
    }
  }
  if (!options.admin_identities.empty() && !options.tokens_file.empty()) {
    return absl::InvalidArgumentError(
        "--admin_identities is given with --auth_tokens_file; accepted: one of them; in the file, give the owner of "
        "the "
        "certificate the role admin");
  }
  if (!options.admin_identities.empty() && !options.certificates) {
    return absl::InvalidArgumentError(
        "--admin_identities is given without --tls_client_ca; accepted: both, so that certificates are checked");
  }
  std::unique_ptr<Authenticator> made(new Authenticator(std::move(options)));
  if (!made->options_.tokens_file.empty()) {
    made->last_read_ = ReadTokensFile(made->options_.tokens_file);
    if (absl::Status status = made->Take(made->last_read_); !status.ok()) return status;
  }
  return made;
}

absl::Status Authenticator::Take(const absl::StatusOr<std::string>& text) {
  if (!text.ok()) return text.status();
  absl::StatusOr<OwnerTable> table = OwnerTable::Parse(*text, options_.tokens_file);
  if (!table.ok()) return table.status();
  auto shared = std::make_shared<const OwnerTable>(*std::move(table));
  absl::MutexLock lock(&mu_);
  table_ = std::move(shared);
  return absl::OkStatus();
}

std::optional<absl::Status> Authenticator::Reread() {
  if (options_.tokens_file.empty()) return std::nullopt;
  // The bytes themselves are compared: times and sizes of files can stay the same when the contents do not.
  absl::StatusOr<std::string> text = ReadTokensFile(options_.tokens_file);
  if (text == last_read_) return std::nullopt;
  last_read_ = std::move(text);
  return Take(last_read_);
}

absl::StatusOr<Identity> Authenticator::Authenticate(std::span<const std::string_view> authorization,
                                                     std::span<const std::string> certificate) const {
  if (const std::shared_ptr<const OwnerTable> owners = table(); owners != nullptr) {
    if (!authorization.empty()) return FindByToken(*owners, authorization);
    if (!certificate.empty()) return FindByCertificate(*owners, certificate);
    return absl::UnauthenticatedError(
        absl::StrCat("the call does not say who calls; send a token as metadata, authorization: Bearer TOKEN",
                     options_.certificates ? ", or show a certificate that --auth_tokens_file names" : ""));
  }
  if (!options_.certificates) return Identity();
  if (certificate.empty()) {
    return absl::UnauthenticatedError(
        "the certificate names nobody; accepted: one with a URI, a DNS name or a common name of at most 255 bytes");
  }
  // Authorities look harder at alternative names than at the common name, so these come first.
  Identity identity;
  identity.owner = OwnerOfCertificate(certificate[0]);
  identity.admin = std::ranges::find(options_.admin_identities, certificate[0]) != options_.admin_identities.end();
  identity.metrics = false;
  return identity;
}

bool Authenticator::MayReadMetrics(std::string_view authorization) const {
  const std::shared_ptr<const OwnerTable> owners = table();
  if (owners == nullptr) return true;
  const absl::StatusOr<Identity> identity = FindByToken(*owners, {&authorization, 1});
  return identity.ok() && identity->metrics;
}

OwnerShare Authenticator::ShareOf(std::string_view owner) const {
  const std::shared_ptr<const OwnerTable> owners = table();
  const OwnerTable::Owner* const found = owners == nullptr ? nullptr : owners->FindOwner(owner);
  return found == nullptr ? OwnerShare() : found->share;
}

std::string Authenticator::LabelOf(std::string_view owner) const {
  const std::shared_ptr<const OwnerTable> owners = table();
  const bool named = owners != nullptr ? owners->FindOwner(owner) != nullptr : !options_.certificates;
  return named ? std::string(owner) : "other";
}

}  // namespace palimpsest
