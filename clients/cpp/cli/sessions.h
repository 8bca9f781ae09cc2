// What several commands do with sessions.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "clients/cpp/client.h"

namespace palimpsest::cli {

// After a call on a session was cancelled, the server may hold the session a moment longer. These wait it out, up to
// five seconds; ABORTED: it is still held then.
absl::Status WaitUntilFree(client::Client& client, const std::string& name);
absl::Status DeleteWhenFree(client::Client& client, const std::string& name);

}  // namespace palimpsest::cli
