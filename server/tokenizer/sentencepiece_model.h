// A `tokenizer.model` file of SentencePiece, read and checked.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace palimpsest {

// The fields of sentencepiece.ModelProto that encoding and decoding depend on, with its defaults.
struct SentencePieceModel {
  // Values of the wire format.
  enum class PieceType : uint8_t { kNormal = 1, kUnknown = 2, kControl = 3, kUserDefined = 4, kUnused = 5, kByte = 6 };
  struct Piece {
    std::string text;
    float score = 0.0f;
    PieceType type = PieceType::kNormal;
  };
  enum class Algorithm : uint8_t { kUnigram = 1, kBpe = 2 };

  std::vector<Piece> pieces;
  int32_t unknown_id = -1;
  int32_t byte_id[256] = {};  // where byte_fallback

  Algorithm algorithm = Algorithm::kUnigram;
  bool byte_fallback = false;
  std::string unknown_surface = " \xE2\x81\x87 ";

  std::string charsmap;  // rules that rewrite the text before it is cut; empty: none
  bool add_dummy_prefix = true;
  bool remove_extra_whitespaces = true;
  bool escape_whitespaces = true;
};

// Any bytes in. What comes out has at least one piece, exactly one of them unknown; texts that are valid UTF-8, at most
// 1024 bytes long and unique; finite scores; and all 256 byte pieces, or none. INVALID_ARGUMENT, saying what and where
// (the caller adds the file): the bytes are damaged, or ask for what is not supported.
absl::StatusOr<SentencePieceModel> ParseSentencePieceModel(std::string_view bytes);

}  // namespace palimpsest
