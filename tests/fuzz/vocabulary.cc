// vocabulary.json, a zero byte, vocab.txt, a zero byte, and a text that they encode.
#include "server/tokenizer/vocabulary.h"

#include "base/check.h"
#include "server/tokenizer/utf8.h"
#include "tests/fuzz/fuzz.h"

namespace palimpsest::fuzz {

void Run(std::string_view input) {
  Input in(input);
  const absl::StatusOr<VocabularyRules> rules = ParseVocabularyRules(in.Text());
  if (!rules.ok()) {
    PALIMPSEST_CHECK(absl::IsInvalidArgument(rules.status()));
    return;
  }
  const absl::StatusOr<std::unique_ptr<Tokenizer>> tokenizer = MakeVocabularyTokenizer(in.Text(), *rules);
  if (!tokenizer.ok()) {
    PALIMPSEST_CHECK(absl::IsInvalidArgument(tokenizer.status()));
    return;
  }
  const std::string_view text = in.Rest();
  int64_t unknown = -1;
  const std::vector<int32_t> ids = (*tokenizer)->Encode(text, /*first=*/true, &unknown);
  PALIMPSEST_CHECK(unknown >= 0 && unknown <= std::ssize(text) && ids.size() <= text.size());
  for (const int32_t id : ids) PALIMPSEST_CHECK(id >= 0 && id < (*tokenizer)->vocabulary());
  PALIMPSEST_CHECK(IsValidUtf8((*tokenizer)->Decode(ids)));
  // Of text that was made from tokens alone, the same tokens are made again.
  if (unknown == 0) {
    std::string spelled;
    int32_t previous = Tokenizer::kNoToken;
    for (const int32_t id : ids) {
      spelled += (*tokenizer)->Bytes(id, previous);
      previous = id;
    }
    PALIMPSEST_CHECK((*tokenizer)->Encode(spelled) == ids);
  }
}

}  // namespace palimpsest::fuzz
