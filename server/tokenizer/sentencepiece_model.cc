#include "server/tokenizer/sentencepiece_model.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <iterator>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/status_macros.h"
#include "server/tokenizer/utf8.h"

namespace palimpsest {
namespace {

using Piece = SentencePieceModel::Piece;
using PieceType = SentencePieceModel::PieceType;

constexpr size_t kMaxPieceBytes = 1024;

// Protocol Buffers' wire format, as far as this one message needs it. Not through the library: SentencePiece's own
// reader brings a second protobuf into the process, and generated code for this message would collide with it.
class WireReader {
 public:
  struct Field {
    uint32_t number = 0;
    uint64_t integer = 0;    // of a varint, 32-bit or 64-bit field
    std::string_view bytes;  // of a length-delimited field
  };

  explicit WireReader(std::string_view bytes) : rest_(bytes) {}

  bool done() const { return rest_.empty(); }

  // The next field; none if the bytes are no message.
  std::optional<Field> Next() {
    const std::optional<uint64_t> tag = Varint();
    if (!tag || *tag >> 32 != 0 || *tag >> 3 == 0) return std::nullopt;
    Field field;
    field.number = static_cast<uint32_t>(*tag >> 3);
    std::optional<uint64_t> length;
    switch (*tag & 7) {
      case 0:
        length = Varint();
        if (!length) return std::nullopt;
        field.integer = *length;
        return field;
      case 1:
        return Fixed(8, field);
      case 2:
        length = Varint();
        if (!length || *length > rest_.size()) return std::nullopt;
        field.bytes = rest_.substr(0, *length);
        rest_.remove_prefix(*length);
        return field;
      case 5:
        return Fixed(4, field);
      default:
        return std::nullopt;
    }
  }

 private:
  std::optional<uint64_t> Varint() {
    uint64_t value = 0;
    for (int shift = 0; shift < 64 && !rest_.empty(); shift += 7) {
      const auto byte = static_cast<uint8_t>(rest_[0]);
      rest_.remove_prefix(1);
      value |= uint64_t{byte & 0x7Fu} << shift;
      if (byte < 0x80) return value;
    }
    return std::nullopt;
  }

  std::optional<Field> Fixed(size_t size, Field field) {
    if (rest_.size() < size) return std::nullopt;
    for (size_t i = 0; i < size; ++i) field.integer |= uint64_t{static_cast<uint8_t>(rest_[i])} << (8 * i);
    rest_.remove_prefix(size);
    return field;
  }

  std::string_view rest_;
};

// Calls visit(field) -> absl::Status for each field of a message.
template <typename Visit>
absl::Status ForEachField(std::string_view message, const char* name, Visit visit) {
  WireReader reader(message);
  while (!reader.done()) {
    const std::optional<WireReader::Field> field = reader.Next();
    if (!field) {
      return absl::InvalidArgumentError(
          absl::StrCat("is not a SentencePiece model or is damaged: ", name, " is malformed or cut short"));
    }
    PALIMPSEST_RETURN_IF_ERROR(visit(*field));
  }
  return absl::OkStatus();
}

absl::Status ReadPiece(std::string_view message, SentencePieceModel& model) {
  Piece piece;
  uint64_t type = 1;
  absl::Status status = ForEachField(message, "a piece", [&](const WireReader::Field& field) {
    if (field.number == 1) piece.text = std::string(field.bytes);
    if (field.number == 2) piece.score = std::bit_cast<float>(static_cast<uint32_t>(field.integer));
    if (field.number == 3) type = field.integer;
    return absl::OkStatus();
  });
  if (!status.ok()) return status;
  if (type < 1 || type > 6) {
    return absl::InvalidArgumentError(absl::StrCat("piece ", model.pieces.size(), " has unknown type ", type));
  }
  piece.type = static_cast<PieceType>(type);
  model.pieces.push_back(std::move(piece));
  return absl::OkStatus();
}

absl::Status ReadTrainerSpec(std::string_view message, SentencePieceModel& model) {
  return ForEachField(message, "trainer_spec", [&](const WireReader::Field& field) {
    switch (field.number) {
      case 3:
        if (field.integer != 1 && field.integer != 2) {
          return absl::InvalidArgumentError(absl::StrCat("trainer_spec.model_type is ", field.integer,
                                                         field.integer == 3   ? " (WORD)"
                                                         : field.integer == 4 ? " (CHAR)"
                                                                              : "",
                                                         ", supported are 1 (UNIGRAM) and 2 (BPE)"));
        }
        model.algorithm = static_cast<SentencePieceModel::Algorithm>(field.integer);
        break;
      case 24:
        if (field.integer != 0) {
          return absl::InvalidArgumentError(
              "trainer_spec.treat_whitespace_as_suffix is true, which is not supported; train without it");
        }
        break;
      case 35:
        model.byte_fallback = field.integer != 0;
        break;
      case 44:
        model.unknown_surface = std::string(field.bytes);
        break;
      default:
        break;
    }
    return absl::OkStatus();
  });
}

absl::Status ReadNormalizerSpec(std::string_view message, SentencePieceModel& model) {
  return ForEachField(message, "normalizer_spec", [&](const WireReader::Field& field) {
    if (field.number == 2) model.charsmap = std::string(field.bytes);
    if (field.number == 3) model.add_dummy_prefix = field.integer != 0;
    if (field.number == 4) model.remove_extra_whitespaces = field.integer != 0;
    if (field.number == 5) model.escape_whitespaces = field.integer != 0;
    return absl::OkStatus();
  });
}

// The byte that "<0x4A>" stands for.
std::optional<uint8_t> ByteOf(std::string_view text) {
  constexpr std::string_view kDigits = "0123456789ABCDEF";
  if (text.size() != 6 || !text.starts_with("<0x") || text[5] != '>') return std::nullopt;
  const size_t high = kDigits.find(text[3]);
  const size_t low = kDigits.find(text[4]);
  if (high == std::string_view::npos || low == std::string_view::npos) return std::nullopt;
  return static_cast<uint8_t>(high << 4 | low);
}

absl::Status CheckPieces(SentencePieceModel& model) {
  if (model.pieces.empty()) return absl::InvalidArgumentError("is not a SentencePiece model: it has no pieces");
  absl::flat_hash_map<std::string_view, size_t> seen;
  std::fill(std::begin(model.byte_id), std::end(model.byte_id), -1);
  for (size_t id = 0; id < model.pieces.size(); ++id) {
    const Piece& piece = model.pieces[id];
    const auto refuse = [&](auto... why) { return absl::InvalidArgumentError(absl::StrCat("piece ", id, why...)); };
    if (piece.text.empty()) return refuse(" is empty");
    if (piece.text.size() > kMaxPieceBytes) {
      return refuse(" has ", piece.text.size(), " bytes, more than ", kMaxPieceBytes);
    }
    if (!IsValidUtf8(piece.text)) return refuse(" (\"", absl::CHexEscape(piece.text), "\") is not valid UTF-8");
    if (!std::isfinite(piece.score)) return refuse(" has a score that is not a finite number");
    if (const auto [it, is_new] = seen.try_emplace(piece.text, id); !is_new) {
      return refuse(" (\"", absl::CHexEscape(piece.text), "\") is also piece ", it->second);
    }
    if (piece.type == PieceType::kUnknown) {
      if (model.unknown_id >= 0) return refuse(" is a second unknown piece after piece ", model.unknown_id);
      model.unknown_id = static_cast<int32_t>(id);
    }
    if (piece.type == PieceType::kByte) {
      const std::optional<uint8_t> byte = ByteOf(piece.text);
      if (!byte) return refuse(" (\"", absl::CHexEscape(piece.text), "\") is of type byte but not like \"<0x41>\"");
      model.byte_id[*byte] = static_cast<int32_t>(id);
    }
  }
  if (model.unknown_id < 0) return absl::InvalidArgumentError("has no unknown piece");
  if (!model.byte_fallback) return absl::OkStatus();
  for (int byte = 0; byte < 256; ++byte) {
    if (model.byte_id[byte] < 0) {
      return absl::InvalidArgumentError(
          absl::StrFormat("trainer_spec.byte_fallback is true but piece <0x%02X> is missing", byte));
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<SentencePieceModel> ParseSentencePieceModel(std::string_view bytes) {
  SentencePieceModel model;
  absl::Status status = ForEachField(bytes, "the message", [&](const WireReader::Field& field) {
    switch (field.number) {
      case 1:
        return ReadPiece(field.bytes, model);
      case 2:
        return ReadTrainerSpec(field.bytes, model);
      case 3:
        return ReadNormalizerSpec(field.bytes, model);
      default:
        return absl::OkStatus();
    }
  });
  if (!status.ok()) return status;
  if (status = CheckPieces(model); !status.ok()) return status;
  return model;
}

}  // namespace palimpsest
