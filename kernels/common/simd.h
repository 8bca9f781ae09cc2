// Which of the compiled SIMD targets the ops run on.
//
// Every op is compiled for several targets; the best that the processor has is chosen at run time. A target can be
// forced, to compare them or to rule one out:
//
//   AVX3_BF16  AVX-512 with bf16 dot products (Zen 4, Sapphire Rapids, and later)
//   AVX3       AVX-512 without them
//   AVX2       with FMA
//   PORTABLE   one value at a time or what the compiler makes of it
//
// A target sums in an order of its own: the same calls give the same bytes on one target, not across them.
#pragma once

#include <string_view>

namespace palimpsest {

// The name of the target in use.
const char* SimdTargetName();

// Makes the ops run on target `name` from now on; false, and no change, when this processor or this build lacks it. Not
// while an op runs.
bool UseSimdTarget(std::string_view name);

// UseSimdTarget(value of the environment variable PALIMPSEST_SIMD), once per process. ThreadPool's constructor calls
// it. Aborts when the variable names a target that is not there: a comparison must not silently compare a thing with
// itself.
void UseSimdTargetFromEnvironment();

// True when the target in use multiplies bf16 pairs natively.
bool HasNativeBF16();

}  // namespace palimpsest
