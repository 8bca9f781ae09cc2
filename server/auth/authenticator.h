// From what a call shows to who calls.
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "server/auth/identity.h"
#include "server/auth/owner_share.h"
#include "server/auth/tokens.h"

namespace palimpsest {

struct AuthenticatorOptions {
  // See tokens.h. Given, every call needs a token or a certificate that it names. Empty: none.
  std::string tokens_file = "";
  // Callers have shown a certificate that the server has checked.
  bool certificates = false;
  // Certificates, as IsCertificateName has them, whose owners are admins where there is no file.
  std::vector<std::string> admin_identities = {};
};

// Three ways: a file of owners; without one, the certificates that callers show; without either, everybody is the owner
// "default" with all roles. Thread-safe.
class Authenticator {
 public:
  // Reads the file. INVALID_ARGUMENT, with the file or the option: it cannot be read, what OwnerTable::Parse says, or
  // options that do not go together.
  static absl::StatusOr<std::unique_ptr<Authenticator>> Make(AuthenticatorOptions options);

  // Who calls. `authorization` has the values of the header of that name, "Bearer TOKEN"; `certificate` the names of
  // the caller's certificate, "URI:...", "DNS:..." and "CN:...", in this order. A token goes before a certificate, so
  // that a gateway with a certificate of its own may pass on its callers' tokens. UNAUTHENTICATED, with the cure:
  // neither is there, or what is there names no owner, or the certificate names two.
  absl::StatusOr<Identity> Authenticate(std::span<const std::string_view> authorization,
                                        std::span<const std::string> certificate) const;

  // Whether a scrape with this header, which may be empty, may read the metrics page: the role `metrics` where there is
  // a file, everybody where there is none.
  bool MayReadMetrics(std::string_view authorization) const;

  // What the file gives to the owner; the default share if it says nothing.
  OwnerShare ShareOf(std::string_view owner) const;
  // The owner's name if metrics may have it as a label: the file names it, or nobody is asked who they are. Else
  // "other", because whoever signs certificates may invent any number of names.
  std::string LabelOf(std::string_view owner) const;

  // Looks at the file again; call it now and then, from one thread. Nothing: it is as it was. OK: the new one counts
  // from now on, for new calls. Else what is wrong with it, told once, and what was read before still counts.
  std::optional<absl::Status> Reread();

 private:
  explicit Authenticator(AuthenticatorOptions options) : options_(std::move(options)) {}
  std::shared_ptr<const OwnerTable> table() const {
    absl::MutexLock lock(&mu_);
    return table_;
  }
  absl::Status Take(const absl::StatusOr<std::string>& text);

  const AuthenticatorOptions options_;
  mutable absl::Mutex mu_;
  std::shared_ptr<const OwnerTable> table_ ABSL_GUARDED_BY(mu_);  // null: no file
  // Of the one thread that rereads: what was read last, right or wrong.
  absl::StatusOr<std::string> last_read_ = std::string();
};

// The owner that a certificate name stands for where no file says. The name's kind, then the name itself if it can be
// part of an id, else what can be kept of it and 128 bits of its SHA-256: "cn-search",
// "uri-spiffe---example-org-sear-5d41402abc4b2a76b9719d911017c592". Two names never stand for one owner.
std::string OwnerOfCertificate(std::string_view name);

}  // namespace palimpsest
