// process_* metrics, read from /proc/self when Prometheus asks.
#pragma once

#include <prometheus/collectable.h>

#include <memory>

namespace palimpsest {

// What cannot be read is left out.
std::shared_ptr<prometheus::Collectable> MakeProcessCollector();

}  // namespace palimpsest
