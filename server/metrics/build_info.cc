#include "server/metrics/metrics.h"

namespace palimpsest {

// Both come from CMake, for this file alone, so that a commit recompiles nothing else.
BuildInfo GetBuildInfo() { return {PALIMPSEST_VERSION, PALIMPSEST_COMMIT}; }

}  // namespace palimpsest
