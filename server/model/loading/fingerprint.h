// What identifies a model: SHA-256 over its configuration and weights.
#pragma once

#include <map>
#include <string>

#include "base/sha256.h"
#include "server/model/checkpoint/safetensors.h"

namespace palimpsest {

// Fingerprint v1, in hexadecimal: SHA-256 over the canonical configuration and a line feed, then per tensor, in the
// order of the map: name, space, type, space, shape, line feed, and the SHA-256 of the tensor's bytes in the file.
// `digests` holds the last for each tensor, so that it can be computed by several threads.
std::string Fingerprint(const std::string& canonical_config, const std::map<std::string, const TensorView*>& tensors,
                        const std::map<std::string, Sha256Digest>& digests);

}  // namespace palimpsest
