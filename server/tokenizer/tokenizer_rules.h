// What a `tokenizer_config.json` of Hugging Face says about turning text into tokens.
//
// Read are `tokenizer_class`, `add_bos_token`, `bos_token` and `add_eos_token`. Keys that change no ids here are left
// out: those of chats, lengths, padding and of turning ids back to text; special tokens, because text never becomes one
// here; and `legacy`, because it is about text next to special tokens. All others are refused by name.
#pragma once

#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace palimpsest {

struct TokenizerRules {
  bool add_bos = false;  // a text that begins a context begins with a token
  std::string bos;       // how that is written
};

// Any bytes in. INVALID_ARGUMENT, saying what and the cure (the caller adds the file): it is no JSON object, a key is
// not known or asks for what is not supported, or a token is to be added that is not named.
absl::StatusOr<TokenizerRules> ParseTokenizerRules(std::string_view bytes);

}  // namespace palimpsest
