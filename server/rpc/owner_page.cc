#include "server/rpc/owner_page.h"

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "server/rpc/caller.h"

namespace palimpsest {

absl::StatusOr<OwnerPage> OwnerPage::Read(const PageTokens& pages, const Identity& identity, absl::string_view kind,
                                          absl::string_view owner, const std::string& token) {
  PALIMPSEST_ASSIGN_OR_RETURN(const bool all, ListsAllOwners(identity, owner));
  // No owner is called "-".
  OwnerPage page(&pages, absl::StrCat(kind, "/", all ? "-" : identity.owner), all);
  PALIMPSEST_ASSIGN_OR_RETURN(std::string last, pages.Read(page.list_, token));
  if (!all) {
    page.after_ = {identity.owner, std::move(last)};
  } else if (const size_t slash = last.find('/'); slash != std::string::npos) {
    page.after_ = {last.substr(0, slash), last.substr(slash + 1)};
  }
  return page;
}

std::string OwnerPage::Joined(absl::string_view owner, absl::string_view id) { return absl::StrCat(owner, "/", id); }

}  // namespace palimpsest
