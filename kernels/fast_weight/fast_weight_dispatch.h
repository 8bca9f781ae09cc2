// Inside fast_weight: from what a launch is told to what its kernel is made of.
#pragma once

#include "kernels/cuda/cuda.h"
#include "kernels/fast_weight/fast_weight.h"

namespace palimpsest::cuda {

// Calls f.template operator()<rule>().
template <typename F>
cudaError_t WithRule(UpdateRule rule, F f) {
  switch (rule) {
    case UpdateRule::kSum:
      return f.template operator()<UpdateRule::kSum>();
    case UpdateRule::kDelta:
      return f.template operator()<UpdateRule::kDelta>();
    case UpdateRule::kGatedDelta:
      return f.template operator()<UpdateRule::kGatedDelta>();
    case UpdateRule::kChannelGatedDelta:
      return f.template operator()<UpdateRule::kChannelGatedDelta>();
    case UpdateRule::kLowRank:
      return f.template operator()<UpdateRule::kLowRank>();
    case UpdateRule::kChannelGatedSum:
      return f.template operator()<UpdateRule::kChannelGatedSum>();
  }
  return cudaErrorInvalidValue;
}

// Calls f.template operator()<rule, type of what is stored>().
template <typename F>
cudaError_t WithRuleAndType(const FastWeightParams& p, F f) {
  return WithRule(p.rule, [&]<UpdateRule kRule>() {
    switch (p.state.dtype) {
      case DType::kF32:
        return f.template operator()<kRule, float>();
      case DType::kBF16:
        return f.template operator()<kRule, BF16>();
      default:
        return cudaErrorInvalidValue;
    }
  });
}

// Calls f.template operator()<kK>() for the one of kKs that `k` is.
template <int... kKs, typename F>
cudaError_t WithKeyDim(int32_t k, F f) {
  cudaError_t error = cudaErrorInvalidValue;
  (void)((k == kKs && (error = f.template operator()<kKs>(), true)) || ...);
  return error;
}

}  // namespace palimpsest::cuda
