// One HTTP GET.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace palimpsest::cli {

// What an https server is checked against, and who asks; empty: the system's authorities, nobody.
struct HttpCredentials {
  std::string ca_file = "";
  std::string certificate_file = "";
  std::string key_file = "";
  std::string token = "";  // sent as `Authorization: Bearer TOKEN`
  bool allow_insecure_token = false;
};

// The body of `url` (http or https). This machine is reached without the environment's proxies. UNAVAILABLE: no answer,
// or none within `timeout`; UNAUTHENTICATED and PERMISSION_DENIED: HTTP status 401 and 403; UNKNOWN: another status
// than 200; INVALID_ARGUMENT: a malformed url, or a token that would cross a network in plain text. All name the url.
absl::StatusOr<std::string> HttpGet(const std::string& url, absl::Duration timeout,
                                    const HttpCredentials& credentials = {});

}  // namespace palimpsest::cli
