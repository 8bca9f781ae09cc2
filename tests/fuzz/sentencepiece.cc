// A text, counted, and a tokenizer.model that encodes it.
#include "server/tokenizer/sentencepiece.h"

#include <algorithm>

#include "base/check.h"
#include "server/tokenizer/sentencepiece_model.h"
#include "server/tokenizer/utf8.h"
#include "tests/fuzz/fuzz.h"

namespace palimpsest::fuzz {
namespace {

// Whether tokens of such a model stand for the very bytes that they were made from.
bool KeepsBytes(const SentencePieceModel& model) {
  using PieceType = SentencePieceModel::PieceType;
  return model.byte_fallback && model.charsmap.empty() && !model.add_dummy_prefix && !model.remove_extra_whitespaces &&
         model.escape_whitespaces && std::ranges::none_of(model.pieces, [](const SentencePieceModel::Piece& piece) {
           return piece.type == PieceType::kUserDefined;
         });
}

}  // namespace

void Run(std::string_view input) {
  Input in(input);
  const std::string_view text = in.Counted();
  const std::string_view bytes = in.Rest();
  const absl::StatusOr<SentencePieceModel> model = ParseSentencePieceModel(bytes);
  const absl::StatusOr<std::unique_ptr<Tokenizer>> tokenizer = MakeSentencePieceTokenizer(bytes);
  if (!tokenizer.ok()) {
    PALIMPSEST_CHECK(absl::IsInvalidArgument(tokenizer.status()));
    return;
  }
  PALIMPSEST_CHECK(model.ok());
  const int32_t vocabulary = (*tokenizer)->vocabulary();
  PALIMPSEST_CHECK(vocabulary == std::ssize(model->pieces));
  for (const bool first : {true, false}) {
    int64_t unknown = -1;
    const std::vector<int32_t> ids = (*tokenizer)->Encode(text, first, &unknown);
    PALIMPSEST_CHECK(unknown >= 0);
    std::string spelled;
    int32_t previous = first ? Tokenizer::kNoToken : Tokenizer::kSomeToken;
    for (const int32_t id : ids) {
      PALIMPSEST_CHECK(id >= 0 && id < vocabulary);
      spelled += (*tokenizer)->Bytes(id, previous);
      previous = id;
    }
    PALIMPSEST_CHECK(IsValidUtf8((*tokenizer)->Decode(ids)));
    if (KeepsBytes(*model)) PALIMPSEST_CHECK(spelled == text);
  }
}

}  // namespace palimpsest::fuzz
