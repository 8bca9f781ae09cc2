// Random checkpoints of any shape, for the tests of this room and of the rooms above it.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/common/dtype.h"
#include "server/model/testing/safetensors_writer.h"

namespace palimpsest::testing {

// The defaults give a model of about 50,000 parameters that takes bytes as tokens.
struct RandomCheckpointSpec {
  // Or "delta_net"; or "fwp", whose heads are of key_dim; or any other, which `settings` describes.
  std::string model_type = "gated_deltanet";
  int32_t vocabulary = 256;
  int32_t hidden = 32;
  int32_t layers = 2;
  int32_t mlp_inner = 64;
  int32_t heads = 2;
  int32_t value_heads = 2;  // a multiple of heads; equal to it for delta_net
  int32_t key_dim = 16;
  int32_t value_dim = 16;
  int32_t conv_size = 4;  // 0: no short convolution
  bool conv_bias = false;
  bool use_gate = true;
  bool allow_neg_eigval = false;
  bool tied = false;
  float norm_eps = 1e-6f;
  // gated_deltanet only.
  std::string gate_activation = "swish";
  // delta_net only.
  bool use_beta = true;
  std::string qk_activation = "silu";
  std::string qk_norm = "l2";
  // Further keys of config.json, as JSON; not of gated_deltanet and delta_net. Of models but these and fwp they are all
  // that says how the mixer is.
  std::string settings = "{}";

  int32_t eos_token = -1;  // -1: the config says null
  // Of gated_deltanet and delta_net only. A token that makes the numbers of its sequence, and of no other, NaN from
  // that token on, though every weight is finite. -1: none. Not with f16, whose range is too small for it.
  int32_t poison_token = -1;
  DType dtype = DType::kF32;  // of every tensor
  int shards = 1;
  uint64_t seed = 1;
};

// The text of config.json.
std::string RandomCheckpointConfig(const RandomCheckpointSpec& spec);

// The tensors, in an order of their own. The same spec gives the same bytes everywhere.
std::vector<TensorToWrite> RandomCheckpointTensors(const RandomCheckpointSpec& spec);

// Creates the folder (and its parents) and writes config.json and the weights; no tokenizer file, so bytes are the
// tokens. Aborts when the folder cannot be written.
void WriteRandomCheckpoint(const std::string& folder, const RandomCheckpointSpec& spec);

}  // namespace palimpsest::testing
