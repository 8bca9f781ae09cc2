// Tokenizers that a SentencePiece model describes: BPE and unigram.
//
// The encoding is SentencePiece's; the code is our own, because the library cannot be had in this process: Debian's
// libsentencepiece.so carries and exports protobuf 3.14, gRPC brings another, and whichever the linker finds first
// breaks the other. The tests compare with the library, id by id. What differs from it, on purpose: bytes that are not
// valid UTF-8, and the character U+2581, are spelled in byte pieces where the model has them, so that they decode to
// themselves; and a long text is cut at places that no piece can span, which keeps time and memory linear.
#pragma once

#include <memory>
#include <string_view>

#include "absl/status/statusor.h"
#include "server/tokenizer/tokenizer.h"

namespace palimpsest {

// From the bytes of a `tokenizer.model`. INVALID_ARGUMENT as ParseSentencePieceModel.
absl::StatusOr<std::unique_ptr<Tokenizer>> MakeSentencePieceTokenizer(std::string_view model_bytes);

}  // namespace palimpsest
