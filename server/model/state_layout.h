// Where the pieces of a state are. Computed from the config, and the type that fast weights are kept in, alone: the
// same of both gives the same layout everywhere.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/common/dtype.h"
#include "kernels/common/used_ranges.h"
#include "server/model/config.h"

namespace palimpsest {

struct StatePieceSpec {
  std::string name;  // "layers.3.fast_weight", "layers.3.conv_tail"
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;
  int64_t offset = 0;  // bytes from the start of the state, a multiple of 64
  int64_t bytes = 0;
  // Of a piece with an entry for each of some last positions, the dimension that counts them; -1: it has none.
  int32_t position_axis = -1;
};

class StateLayout {
 public:
  // `fast_weights`: kF32 or kBF16. All other pieces are float32.
  static StateLayout FromConfig(const ModelConfig& config, DType fast_weights = DType::kF32);

  const std::vector<StatePieceSpec>& pieces() const { return pieces_; }
  // Those that have positions.
  std::vector<PositionedPiece> positioned() const;
  // What of a state is used once so many tokens have been processed (kernels/common/used_ranges.h).
  std::vector<ByteRange> UsedRanges(int64_t tokens) const;
  // Bytes of one state, a multiple of 64.
  int64_t bytes() const { return bytes_; }
  // Changes whenever a piece's name, type, shape or offset does.
  uint64_t hash() const { return hash_; }

 private:
  friend class StateLayoutBuilder;

  std::vector<StatePieceSpec> pieces_;
  int64_t bytes_ = 0;
  uint64_t hash_ = 0;
};

// Where a layer's piece is in a state, for the layer that has asked for it.
struct StateHandle {
  int64_t offset = -1;  // -1: the layer has no such piece
  DType dtype = DType::kF32;
};

// Lays pieces out one after the other.
class StateLayoutBuilder {
 public:
  explicit StateLayoutBuilder(DType fast_weights) : fast_weights_(fast_weights) {}

  DType fast_weights() const { return fast_weights_; }
  // Pieces that follow are those of this layer.
  void EnterLayer(size_t index);
  StateHandle Add(std::string_view name, std::vector<int64_t> shape, DType dtype = DType::kF32,
                  int32_t position_axis = -1);
  StateLayout Finish() &&;

 private:
  const DType fast_weights_;
  std::string prefix_;
  StateLayout layout_;
};

}  // namespace palimpsest
