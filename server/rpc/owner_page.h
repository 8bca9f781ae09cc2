// A page of a list of what owners have: whose, and after what.
#pragma once

#include <string>
#include <utility>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "server/auth/identity.h"
#include "server/rpc/page_token.h"
#include "server/session/session_store.h"

namespace palimpsest {

// Tokens are those of one owner's list, or of the list over all: a token of another is refused.
class OwnerPage {
 public:
  // `kind` is "sessions" or "snapshots"; `owner` and `token` are the request's. `pages` must outlive the page.
  // INVALID_ARGUMENT, PERMISSION_DENIED: as ListsAllOwners. INVALID_ARGUMENT: the token is not one of this list.
  static absl::StatusOr<OwnerPage> Read(const PageTokens& pages, const Identity& identity, absl::string_view kind,
                                        absl::string_view owner, const std::string& token);

  bool all_owners() const { return all_owners_; }
  // The last one of the page before; two empty strings: this is the first page.
  const ParkedKey& after() const { return after_; }
  // Of the page that comes after `last`, a SessionInfo or a SnapshotInfo.
  template <class Info>
  std::string TokenAfter(const Info& last) const {
    return pages_->Make(list_, all_owners_ ? Joined(last.owner, last.id) : last.id);
  }

 private:
  OwnerPage(const PageTokens* pages, std::string list, bool all_owners)
      : pages_(pages), list_(std::move(list)), all_owners_(all_owners) {}
  static std::string Joined(absl::string_view owner, absl::string_view id);

  const PageTokens* pages_;
  std::string list_;
  bool all_owners_;
  ParkedKey after_;
};

}  // namespace palimpsest
