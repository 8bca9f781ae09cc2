// One HTTP GET.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace palimpsest::cli {

// The body of `url` (http or https). UNAVAILABLE: no answer, or none within `timeout`; UNKNOWN: a status other than
// 200; both name the url.
absl::StatusOr<std::string> HttpGet(const std::string& url, absl::Duration timeout);

}  // namespace palimpsest::cli
