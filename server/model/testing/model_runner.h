// A model and the states of a few sequences, fed in any way one likes, wherever the model is.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "kernels/common/aligned_buffer.h"
#include "kernels/common/thread_pool.h"
#include "server/model/model.h"

namespace palimpsest::testing {

class ModelRunner {
 public:
  // States begin as zeros.
  ModelRunner(const Model& model, int32_t slots, int threads = 2);

  // The tokens that one slot's state takes in.
  struct Piece {
    int32_t slot = 0;
    std::span<const int32_t> tokens;
    int64_t first_position = 0;
    std::span<const int32_t> targets = {};  // of each token, as in ForwardBatch; empty: all of all
  };
  // The logits of every row, [rows, vocabulary], in the order of the pieces. One call of Model::Forward, but that a
  // device takes what is left of a piece after 64 n > 0 tokens, if it is one, in a second.
  std::vector<float> Forward(std::span<const Piece> pieces);

  std::vector<std::byte> State(int32_t slot);
  void SetState(int32_t slot, std::span<const std::byte> state);

 private:
  struct Part {
    Piece piece;
    int64_t row = 0;  // of the result
  };
  void Call(std::vector<Part> parts, std::vector<float>& result);

  const Model& model_;
  ThreadPool pool_;
  AlignedBytes states_;
  Workspace workspace_;
};

}  // namespace palimpsest::testing
