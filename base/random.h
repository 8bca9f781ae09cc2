// Chance. Two kinds, for what may be guessed and for what may not.
#pragma once

#include <cstdint>
#include <string>

namespace palimpsest {

// Unlikely to come twice, in this process or another, and quick; but whoever has seen many can tell the next one. For
// ids that only tell things apart, and for seeds. Thread-safe.
uint64_t RandomNumber();

// Bytes that nobody can guess, from the system's cryptographic source. Thread-safe.
std::string SecretBytes(int64_t count);

}  // namespace palimpsest
