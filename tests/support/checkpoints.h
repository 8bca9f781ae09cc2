// The checkpoints that end-to-end tests serve.
#pragma once

#include <string>

#include "server/model/testing/random_checkpoint.h"

namespace palimpsest::testing {

// A random checkpoint in a fresh folder; gone when the process ends.
std::string MakeCheckpoint(const RandomCheckpointSpec& spec = {});

// A random checkpoint slow enough that a few hundred tokens take a second or more.
std::string MakeSlowCheckpoint();

// The checkpoint that ships with the repository. Aborts if it is not there: then the checkout is not whole.
std::string BundledCheckpoint();

// `length` bytes of words that depend on `seed` alone.
std::string MakePrompt(uint64_t seed, size_t length);

}  // namespace palimpsest::testing
