#include "kernels/common/simd.h"

#include <cstdio>
#include <cstdlib>
#include <iterator>

#include "hwy/highway.h"

namespace palimpsest {
namespace {

struct Choice {
  const char* name;
  int64_t target;  // of Highway
  bool native_bf16;
};

// Best first. Highway 1.0.3 has no target for AVX512-BF16: where an op uses it, it asks HasNativeBF16().
constexpr Choice kChoices[] = {
#if HWY_ARCH_X86
    {"AVX3_BF16", HWY_AVX3, true},
    {"AVX3", HWY_AVX3, false},
    {"AVX2", HWY_AVX2, false},
#endif
    {"PORTABLE", HWY_STATIC_TARGET, false},
};

bool ProcessorHasBF16() {
#if defined(__x86_64__)
  return __builtin_cpu_supports("avx512bf16");
#else
  return false;
#endif
}

bool Available(const Choice& choice) {
  if (choice.native_bf16 && !ProcessorHasBF16()) return false;
  return choice.target == HWY_STATIC_TARGET || (hwy::SupportedTargets() & HWY_TARGETS & choice.target) != 0;
}

// The last choice is always available.
const Choice* Best() {
  const Choice* choice = kChoices;
  while (!Available(*choice)) ++choice;
  return choice;
}

const Choice*& Current() {
  static const Choice* current = Best();
  return current;
}

}  // namespace

const char* SimdTargetName() { return Current()->name; }

bool HasNativeBF16() { return Current()->native_bf16; }

bool UseSimdTarget(std::string_view name) {
  for (const Choice& choice : kChoices) {
    if (choice.name != name) continue;
    if (!Available(choice)) return false;
    Current() = &choice;
    hwy::GetChosenTarget().Update(choice.target);
    return true;
  }
  return false;
}

void UseSimdTargetFromEnvironment() {
  static const bool done = [] {
    const char* const name = std::getenv("PALIMPSEST_SIMD");
    if (name != nullptr && *name != '\0' && !UseSimdTarget(name)) {
      std::fprintf(stderr, "PALIMPSEST_SIMD=%s: this processor or this build has no such target; the best here is %s\n",
                   name, Best()->name);
      std::abort();
    }
    return true;
  }();
  static_cast<void>(done);
}

}  // namespace palimpsest
