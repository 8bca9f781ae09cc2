#include "server/model/state_layout.h"

#include <string_view>
#include <utility>
#include <variant>

#include "absl/strings/str_cat.h"
#include "base/round_up.h"
#include "server/model/layers/attention.h"
#include "server/model/layers/fast_weight.h"

namespace palimpsest {
namespace {

constexpr int64_t kAlignment = 64;

// FNV-1a, 64 bits. It tells layouts apart that differ by accident; it is no defence against one made to collide, which
// the model's SHA-256 fingerprint beside it is.
class Fnv1a {
 public:
  void Add(std::string_view text) {
    Add(static_cast<int64_t>(text.size()));
    for (char c : text) Byte(static_cast<uint8_t>(c));
  }
  void Add(int64_t value) {
    for (int shift = 0; shift < 64; shift += 8) Byte(static_cast<uint8_t>(static_cast<uint64_t>(value) >> shift));
  }
  uint64_t value() const { return value_; }

 private:
  void Byte(uint8_t byte) { value_ = (value_ ^ byte) * 0x100000001B3u; }

  uint64_t value_ = 0xCBF29CE484222325u;
};

// Layout hash v1: FNV-1a over the number of pieces, then per piece: length and bytes of the name, length and bytes of
// the type's name, number of dimensions, dimensions, offset; last the bytes of the whole. Numbers as 8 bytes, little
// endian. It is part of every snapshot: another definition is another version of the snapshot format.
uint64_t Hash(const std::vector<StatePieceSpec>& pieces, int64_t bytes) {
  Fnv1a hash;
  hash.Add(static_cast<int64_t>(pieces.size()));
  for (const StatePieceSpec& piece : pieces) {
    hash.Add(piece.name);
    hash.Add(NameOf(piece.dtype));
    hash.Add(static_cast<int64_t>(piece.shape.size()));
    for (int64_t dim : piece.shape) hash.Add(dim);
    hash.Add(piece.offset);
  }
  hash.Add(bytes);
  return hash.value();
}

}  // namespace

std::vector<PositionedPiece> StateLayout::positioned() const {
  std::vector<PositionedPiece> positioned;
  for (const StatePieceSpec& piece : pieces_) {
    if (piece.position_axis < 0) continue;
    int64_t blocks = 1;
    for (int32_t i = 0; i < piece.position_axis; ++i) blocks *= piece.shape[i];
    positioned.push_back({piece.offset, piece.bytes, blocks, piece.shape[piece.position_axis]});
  }
  return positioned;
}

std::vector<ByteRange> StateLayout::UsedRanges(int64_t tokens) const {
  return palimpsest::UsedRanges(bytes_, positioned(), tokens);
}

void StateLayoutBuilder::EnterLayer(size_t index) { prefix_ = absl::StrCat("layers.", index, "."); }

StateHandle StateLayoutBuilder::Add(std::string_view name, std::vector<int64_t> shape, DType dtype,
                                    int32_t position_axis) {
  StatePieceSpec piece{
      .name = prefix_ + std::string(name), .dtype = dtype, .shape = std::move(shape), .position_axis = position_axis};
  piece.offset = layout_.bytes_;
  piece.bytes = SizeOf(piece.dtype);
  for (const int64_t dim : piece.shape) piece.bytes *= dim;
  layout_.bytes_ = RoundUp(piece.offset + piece.bytes, kAlignment);
  layout_.pieces_.push_back(std::move(piece));
  return {.offset = layout_.pieces_.back().offset, .dtype = dtype};
}

StateLayout StateLayoutBuilder::Finish() && {
  layout_.hash_ = Hash(layout_.pieces_, layout_.bytes_);
  return std::move(layout_);
}

StateLayout StateLayout::FromConfig(const ModelConfig& config, DType fast_weights) {
  StateLayoutBuilder builder(fast_weights);
  for (size_t i = 0; i < config.layers.size(); ++i) {
    builder.EnterLayer(i);
    std::visit([&](const auto& mixer) { Pieces(mixer, builder); }, config.layers[i].mixer);
  }
  return std::move(builder).Finish();
}

}  // namespace palimpsest
