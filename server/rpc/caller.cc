#include "server/rpc/caller.h"

#include <grpc/grpc_security_constants.h>
#include <grpcpp/security/auth_context.h>
#include <grpcpp/server_context.h>

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/quote.h"
#include "server/auth/tokens.h"
#include "server/errors/errors.h"

namespace palimpsest {
namespace {

// The names of the certificate that the caller has shown and the server has checked. Those with control characters, and
// those of more than 255 bytes, are left out.
std::vector<std::string> CertificateNames(const grpc::AuthContext& context) {
  constexpr std::pair<const char*, const char*> kKinds[] = {{"URI:", GRPC_PEER_URI_PROPERTY_NAME},
                                                            {"DNS:", GRPC_PEER_DNS_PROPERTY_NAME},
                                                            {"CN:", GRPC_X509_CN_PROPERTY_NAME}};
  std::vector<std::string> names;
  if (!context.IsPeerAuthenticated()) return names;
  for (const auto& [kind, property] : kKinds) {
    for (const grpc::string_ref& value : context.FindPropertyValues(property)) {
      std::string name = absl::StrCat(kind, absl::string_view(value.data(), value.size()));
      if (IsCertificateName(name)) names.push_back(std::move(name));
    }
  }
  return names;
}

absl::Status Denied(absl::string_view what, absl::string_view role) {
  return WithReason(absl::PermissionDeniedError(absl::StrCat(what, " is for callers with the role ", role)),
                    "ROLE_MISSING", {{"role", std::string(role)}});
}

}  // namespace

absl::StatusOr<Identity> IdentityOf(const Authenticator& authenticator, const grpc::ServerContextBase& context) {
  std::vector<std::string_view> authorization;
  const auto [begin, end] = context.client_metadata().equal_range("authorization");
  for (auto it = begin; it != end; ++it) authorization.emplace_back(it->second.data(), it->second.size());
  absl::StatusOr<Identity> identity =
      authenticator.Authenticate(authorization, CertificateNames(*context.auth_context()));
  if (!identity.ok()) return WithReason(identity.status(), "CALLER_UNKNOWN");
  return identity;
}

absl::Status CheckRole(const Identity& identity, MayCall who, absl::string_view method) {
  switch (who) {
    case MayCall::kUser:
      return identity.user ? absl::OkStatus() : Denied(method, "user");
    case MayCall::kAdmin:
      return identity.admin ? absl::OkStatus() : Denied(method, "admin");
    case MayCall::kUserOrAdmin:
      return identity.user || identity.admin ? absl::OkStatus() : Denied(method, "user or admin");
  }
  return absl::InternalError("unknown role");
}

absl::StatusOr<bool> ListsAllOwners(const Identity& identity, absl::string_view owner) {
  if (owner.empty()) {
    if (!identity.user) return Denied("listing one's own", "user");
    return false;
  }
  if (owner != "-") {
    return FieldViolation("owner", absl::StrCat("is ", DoubleQuoted({owner.data(), owner.size()}),
                                                "; accepted: empty: the caller's own; -: all ", "owners', for admins"));
  }
  if (!identity.admin) return Denied("listing those of all owners", "admin");
  return true;
}

SessionStoreOptions WithShares(SessionStoreOptions options, const Authenticator* authenticator) {
  options.share = [authenticator](const std::string& owner) {
    const OwnerShare share = authenticator->ShareOf(owner);
    return SessionShare{.max_sessions = share.max_sessions.value_or(SessionShare::kNoLimit),
                        .max_snapshots = share.max_snapshots.value_or(SessionShare::kNoLimit),
                        .max_state_bytes = share.max_state_bytes.value_or(SessionShare::kNoLimit)};
  };
  return options;
}

ModelRegistry::Options WithShares(ModelRegistry::Options options, const Authenticator* authenticator) {
  options.engine.shares = [authenticator](const std::string& owner) {
    const OwnerShare share = authenticator->ShareOf(owner);
    return EngineShare{.weight = share.weight,
                       .max_slots = share.max_slots,
                       .max_queue = share.max_queue,
                       .prefill_budget = share.prefill_budget};
  };
  return options;
}

}  // namespace palimpsest
