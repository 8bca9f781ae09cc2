#include "server/tokenizer/tokenizer_rules.h"

#include <algorithm>
#include <iterator>
#include <nlohmann/json.hpp>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "base/quote.h"
#include "base/status_macros.h"

namespace palimpsest {
namespace {

using nlohmann::json;

// What the class does where the file does not say.
struct TokenizerClass {
  std::string_view name;
  bool add_bos;
  std::string_view bos;
};
constexpr TokenizerClass kClasses[] = {
    {"LlamaTokenizer", true, "<s>"},       {"LlamaTokenizerFast", true, "<s>"}, {"GemmaTokenizer", true, "<bos>"},
    {"GemmaTokenizerFast", true, "<bos>"}, {"PreTrainedTokenizer", false, ""},  {"PreTrainedTokenizerFast", false, ""},
};

constexpr std::string_view kNoMatter[] = {
    // Special tokens, which text never becomes.
    "unk_token", "eos_token", "pad_token", "sep_token", "cls_token", "mask_token", "additional_special_tokens",
    "extra_special_tokens", "special_tokens_map_file", "split_special_tokens", "legacy",
    // Lengths and batches.
    "model_max_length", "max_length", "max_len", "stride", "padding", "padding_side", "pad_to_multiple_of",
    "pad_token_type_id", "truncation", "truncation_side", "truncation_strategy", "model_input_names",
    // Back to text.
    "clean_up_tokenization_spaces", "spaces_between_special_tokens", "errors",
    // Chats, and where it came from.
    "chat_template", "use_default_system_prompt", "response_schema", "name_or_path", "_name_or_path", "tokenizer_file",
    "vocab_file", "auto_map", "processor_class", "from_slow", "use_fast", "is_local", "backend", "device_map",
    "transformers_version"};

// May be there with this value, which is what is done.
struct Only {
  const char* key;
  const char* value;
  const char* reason;
};
constexpr Only kOnly[] = {
    {"add_eos_token", "false", "prompts are gone on from, so nothing is put after them"},
    {"add_prefix_space", "true", "tokenizer.model says whether a space is put in front"},
    {"do_lower_case", "false", "the case of a text is kept"},
    {"sp_model_kwargs", "{}", "tokenizer.model says how a text is cut"},
};

absl::Status Refuse(const std::string& why) { return absl::InvalidArgumentError(why); }

std::string Shown(const json& value) {
  if (value.is_string()) return DoubleQuotedUtf8(value.get_ref<const std::string&>());
  return value.is_structured() ? absl::StrCat("of type ", value.type_name()) : value.dump();
}

// Tokens that are no special ones are looked for in a text before it is cut, which is not done here.
absl::Status CheckAddedTokens(const json& added) {
  if (!added.is_object()) return Refuse(absl::StrCat("added_tokens_decoder is ", Shown(added), ", expected an object"));
  for (const auto& [id, token] : added.items()) {
    if (token.is_object() && token.contains("special") && token["special"] == true) continue;
    return Refuse(absl::StrCat("added_tokens_decoder has token ", DoubleQuotedUtf8(id),
                               ", which is not special; tokens that tokenizer.model does not have are not supported"));
  }
  return absl::OkStatus();
}

absl::Status ReadBos(const json& value, TokenizerRules& rules) {
  const json* const text = value.is_object() && value.contains("content") ? &value["content"] : &value;
  rules.bos.clear();
  if (text->is_null()) return absl::OkStatus();
  if (!text->is_string()) {
    return Refuse(absl::StrCat("bos_token is ", Shown(*text), ", expected a token as text, or null"));
  }
  rules.bos = text->get<std::string>();
  return absl::OkStatus();
}

absl::Status ReadClass(const json& value, TokenizerRules& rules) {
  if (value.is_null()) return absl::OkStatus();
  const auto* const known =
      std::ranges::find_if(kClasses, [&](const TokenizerClass& known) { return value == std::string(known.name); });
  if (known == std::end(kClasses)) {
    return Refuse(absl::StrCat("tokenizer_class is ", Shown(value),
                               ", of which palimpsest does not know what it puts before and after a text; if it does "
                               "as LlamaTokenizer does, name that, with add_bos_token true or false"));
  }
  rules = {.add_bos = known->add_bos, .bos = std::string(known->bos)};
  return absl::OkStatus();
}

absl::Status ReadKey(const std::string& key, const json& value, TokenizerRules& rules) {
  if (key == "tokenizer_class" || std::ranges::find(kNoMatter, key) != std::end(kNoMatter)) return absl::OkStatus();
  if (key == "added_tokens_decoder") return CheckAddedTokens(value);
  if (key == "bos_token") return ReadBos(value, rules);
  if (key == "add_bos_token") {
    if (!value.is_boolean() && !value.is_null()) {
      return Refuse(absl::StrCat("add_bos_token is ", Shown(value), ", expected true or false"));
    }
    if (value.is_boolean()) rules.add_bos = value.get<bool>();
    return absl::OkStatus();
  }
  const auto* const only = std::ranges::find_if(kOnly, [&](const Only& only) { return key == only.key; });
  if (only == std::end(kOnly)) {
    return Refuse(absl::StrCat("unknown key ", DoubleQuotedUtf8(key),
                               ": palimpsest does not know how text becomes tokens where it is set"));
  }
  if (value.is_null() || value == json::parse(only->value)) return absl::OkStatus();
  return Refuse(absl::StrCat(only->key, " is ", Shown(value), ", only ", only->value, " is supported: ", only->reason));
}

}  // namespace

absl::StatusOr<TokenizerRules> ParseTokenizerRules(std::string_view bytes) {
  const json object = json::parse(bytes, nullptr, /*allow_exceptions=*/false);
  if (!object.is_object()) return Refuse("is no JSON object");
  TokenizerRules rules;
  // First, because the others say more than it.
  if (const auto found = object.find("tokenizer_class"); found != object.end()) {
    PALIMPSEST_RETURN_IF_ERROR(ReadClass(*found, rules));
  }
  for (const auto& [key, value] : object.items()) {
    PALIMPSEST_RETURN_IF_ERROR(ReadKey(key, value, rules));
  }
  return rules;
}

}  // namespace palimpsest
