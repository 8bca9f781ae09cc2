// Tokenizers of a plain list of symbols, as word-level and character-level language models have them: the vocabularies
// of Transformer-XL's toolkit, which the fast-weight models of WikiText-103 and enwik8 were trained with.
//
// `vocab.txt` has one symbol a line, in the order of the ids. `vocabulary.json` says how a text is cut into symbols:
//
//   {"kind": "word", "unk": "<unk>", "eos": "<eos>"}
//     A line is cut at white space, what Python's str.split() takes for that: U+0009-000D, 001C-0020, 0085, 00A0, 1680,
//     2000-200A, 2028, 2029, 202F, 205F, 3000. Each line end (\n, \r or \r\n) is the symbol `eos`, an empty line too; a
//     last line without an end has none, so that a prompt can be gone on from. With "eos": null, line ends are white
//     space. A word that is not there is `unk`. Case is kept.
//     Back to text: words with one space between them; `eos` is "\n". The white space of the text is lost.
//   {"kind": "character", "unk": null, "eos": null}
//     Symbols are decimal values of bytes, and each byte of the text is one. A byte that is not there is `unk`; without
//     `unk` it is left out. That is what such models saw of line breaks, which enwik8's vocabulary does not have. With
//     `eos`, byte 10 is that symbol where the vocabulary does not have it by its value.
//
// "lowercase" may be there and false (for characters also true, which changes nothing); keys but "kind", and of words
// "unk", may be left out.
//
// A text in pieces gives the tokens of the whole, if of words the pieces meet at white space, which may be on either
// side, but not between \r and \n. Characters may be cut anywhere.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "server/tokenizer/tokenizer.h"

namespace palimpsest {

struct VocabularyRules {
  enum class Kind : uint8_t { kWord, kCharacter };
  Kind kind = Kind::kWord;
  std::optional<std::string> unk;  // kWord has one
  std::optional<std::string> eos;
};

// From the bytes of a `vocabulary.json`; any bytes in. INVALID_ARGUMENT, saying what and the cure (the caller adds the
// file): it is no JSON, a key is missing or not known, or a value is none of those above.
absl::StatusOr<VocabularyRules> ParseVocabularyRules(std::string_view bytes);

// From the bytes of a `vocab.txt`; any bytes in. INVALID_ARGUMENT, with the line and the cure: a symbol is empty,
// double, not valid UTF-8 or such that no text can hold it; or `unk` or `eos` is not among them.
absl::StatusOr<std::unique_ptr<Tokenizer>> MakeVocabularyTokenizer(std::string_view symbols,
                                                                   const VocabularyRules& rules);

}  // namespace palimpsest
