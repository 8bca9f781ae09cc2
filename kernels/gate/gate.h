// The gates of a memory: writing strength, and forgetting, by head or by channel of the keys.
//
//   beta       scale * sigmoid(b)                                         scale 2 allows negative eigenvalues
//   log_decay  softplus     -exp(A_log) * softplus(a + bias)              Gated DeltaNet by head, KDA by channel
//              sigmoid      lower_bound * sigmoid(exp(A_log) (a + bias))  KDA with a bound; RWKV-7, whose bound is
//                                                                         -e^(-1/2)
//              log sigmoid  log(sigmoid(a + bias)) / divisor, at least lower_bound                        GLA
//
// softplus(x) = log(1 + e^x), x itself above 20; log(sigmoid(x)) = -softplus(-x), which loses nothing far from zero.
#pragma once

#include <cstdint>
#include <limits>

#include "kernels/common/host_device.h"
#include "kernels/common/thread_pool.h"

namespace palimpsest {

enum class DecayKind : uint8_t { kSoftplus, kSigmoid, kLogSigmoid };

struct GateParams {
  int32_t rows = 0;
  int32_t heads = 0;         // of b and beta: value heads, with several writes to a row times as many
  const float* b = nullptr;  // [rows, heads], row stride ldb; null: beta = scale everywhere
  int64_t ldb = 0;
  float beta_scale = 1.0f;
  float* beta = nullptr;  // [rows, heads] contiguous; null: none
  // All null without decay.
  const float* a = nullptr;  // [rows, decay_heads, decay_channels], row stride lda
  int64_t lda = 0;
  const float* a_log = nullptr;    // [decay_heads]; null: zeros
  const float* dt_bias = nullptr;  // [decay_heads, decay_channels], the bias; null: zeros
  float* log_decay = nullptr;      // [rows, decay_heads, decay_channels] contiguous
  DecayKind decay_kind = DecayKind::kSoftplus;
  int32_t decay_heads = 0;     // 0: `heads`
  int32_t decay_channels = 1;  // 1: by head
  // What no log-decay is below: kSigmoid comes near it, kLogSigmoid is cut off there. kSoftplus has none.
  float lower_bound = -std::numeric_limits<float>::infinity();
  float divisor = 1.0f;  // of kLogSigmoid

  PALIMPSEST_HOST_DEVICE int32_t heads_of_decay() const { return decay_heads == 0 ? heads : decay_heads; }
  PALIMPSEST_HOST_DEVICE int64_t decays() const { return int64_t{heads_of_decay()} * decay_channels; }  // of a row
};
void Gate(const ExecContext& ctx, const GateParams& params);

// The truth, in double precision.
void GateReference(const GateParams& params);

}  // namespace palimpsest
