// Keys of a config.json that are not an architecture's own: what transformers (PretrainedConfig of versions 4 and 5)
// and trainers write into every file.
#pragma once

#include "server/model/architectures/config_keys.h"

namespace palimpsest {

// Accepts those that say nothing of the model at any value, those that could at the value that leaves it as it is.
void AcceptCommonKeys(ConfigKeys& keys);

}  // namespace palimpsest
