#include "server/model/state_layout.h"

#include <string_view>
#include <utility>

#include "absl/strings/str_cat.h"

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

StateLayout StateLayout::FromConfig(const ModelConfig& config, DType fast_weights) {
  const MixerConfig& mixer = config.mixer;
  StateLayout layout;
  const auto add = [&](std::string name, std::vector<int64_t> shape, DType dtype = DType::kF32) {
    StatePieceSpec piece{.name = std::move(name), .dtype = dtype, .shape = std::move(shape)};
    piece.offset = layout.bytes_;
    piece.bytes = SizeOf(piece.dtype);
    for (int64_t dim : piece.shape) piece.bytes *= dim;
    layout.bytes_ = (piece.offset + piece.bytes + kAlignment - 1) / kAlignment * kAlignment;
    layout.pieces_.push_back(std::move(piece));
  };
  for (int32_t i = 0; i < config.layers; ++i) {
    const std::string layer = absl::StrCat("layers.", i, ".");
    if (mixer.is_window()) {
      add(layer + "window", {2, mixer.shape.heads, mixer.window_capacity(), mixer.head_dim});
      continue;
    }
    add(layer + "fast_weight", {mixer.shape.value_heads, mixer.shape.value_dim, mixer.shape.key_dim}, fast_weights);
    if (mixer.attention_norm != AttentionNormKind::kNone) {
      add(layer + "key_sum", {mixer.shape.heads, mixer.shape.key_dim});
    }
    if (mixer.conv_width > 1) add(layer + "conv_tail", {mixer.conv_width - 1, mixer.conv_channels()});
  }
  layout.hash_ = Hash(layout.pieces_, layout.bytes_);
  return layout;
}

}  // namespace palimpsest
