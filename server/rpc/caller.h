// Who calls, from what gRPC knows of a call, and whether they may.
#pragma once

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "server/auth/authenticator.h"
#include "server/auth/identity.h"
#include "server/models/registry.h"
#include "server/session/session_store.h"

namespace grpc {
class ServerContextBase;
}

namespace palimpsest {

// UNAUTHENTICATED, as Authenticator says.
absl::StatusOr<Identity> IdentityOf(const Authenticator& authenticator, const grpc::ServerContextBase& context);

// Whether the identity has a role for what `method` names. PERMISSION_DENIED, naming the role.
absl::Status CheckRole(const Identity& identity, MayCall who, absl::string_view method);

// Whose resources a List call asks for by its `owner`: empty: the caller's own; "-": all owners'. INVALID_ARGUMENT:
// else. PERMISSION_DENIED: all owners' are for admins, the caller's own for users.
absl::StatusOr<bool> ListsAllOwners(const Identity& identity, absl::string_view owner);

// With the owners' shares, as the file of owners has them at the moment. `authenticator` must outlive the store.
SessionStoreOptions WithShares(SessionStoreOptions options, const Authenticator* authenticator);
// The same for the engines of models.
ModelRegistry::Options WithShares(ModelRegistry::Options options, const Authenticator* authenticator);

}  // namespace palimpsest
