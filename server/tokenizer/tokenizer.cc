#include "server/tokenizer/tokenizer.h"

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "base/status_macros.h"
#include "server/tokenizer/sentencepiece.h"
#include "server/tokenizer/tokenizer_rules.h"
#include "server/tokenizer/vocabulary.h"

namespace palimpsest {
namespace {

constexpr int32_t kByteVocabulary = 256;
// Models of bytes have the 256 and some special tokens, often padded. Larger vocabularies are those of models that were
// trained on pieces of text, whose ids mean nothing as bytes: the tokenizer was forgotten.
constexpr int32_t kMostByteVocabulary = 1024;
// The largest in use (256k pieces) has some 5 MB.
constexpr int64_t kMaxModelBytes = 64 << 20;
constexpr int64_t kMaxRulesBytes = 64 << 10;
// A chat template and a list of special tokens may be in it.
constexpr int64_t kMaxTokenizerConfigBytes = 4 << 20;

// Whether the tokenizer can be the model's: embeddings are padded, so that their rows are a multiple of what some
// hardware likes, by a small part of them.
bool Covers(const Tokenizer& tokenizer, int32_t vocabulary) {
  constexpr int32_t kMostPadding = 1024, kLeastShare = 16;
  const int32_t padding = vocabulary - tokenizer.vocabulary();
  return padding >= 0 && padding <= std::min(kMostPadding, vocabulary / kLeastShare);
}

class ByteTokenizer final : public Tokenizer {
 public:
  explicit ByteTokenizer(int32_t vocabulary) : vocabulary_(vocabulary) {
    for (int byte = 0; byte < kByteVocabulary; ++byte) bytes_[byte] = static_cast<char>(byte);
  }

  std::string_view kind() const override { return "bytes"; }
  int32_t vocabulary() const override { return vocabulary_; }

  std::string_view Bytes(int32_t id, int32_t /*previous*/) const override {
    return id >= 0 && id < kByteVocabulary ? std::string_view(bytes_ + id, 1) : std::string_view();
  }

 protected:
  void Append(std::string_view text, bool /*first*/, size_t most, std::vector<int32_t>& ids,
              int64_t& /*unknown*/) const override {
    const size_t count = std::min(text.size(), most < ids.size() ? 0 : most - ids.size() + 1);
    for (const char byte : text.substr(0, count)) ids.push_back(static_cast<uint8_t>(byte));
  }
  int32_t Find(std::string_view /*piece*/) const override { return -1; }

 private:
  int32_t vocabulary_;
  char bytes_[kByteVocabulary];
};

absl::Status Refuse(const std::filesystem::path& path, const std::string& why) {
  return absl::InvalidArgumentError(absl::StrCat(path.string(), ": ", why));
}

absl::StatusOr<std::unique_ptr<Tokenizer>> LoadSentencePiece(const std::filesystem::path& path, int32_t vocabulary) {
  PALIMPSEST_ASSIGN_OR_RETURN(std::string bytes, ReadFile(path, kMaxModelBytes));
  absl::StatusOr<std::unique_ptr<Tokenizer>> tokenizer = MakeSentencePieceTokenizer(bytes);
  if (!tokenizer.ok()) return Refuse(path, std::string(tokenizer.status().message()));
  if (!Covers(**tokenizer, vocabulary)) {
    return Refuse(path, absl::StrCat("has ", (*tokenizer)->vocabulary(), " pieces, but config.json says vocab_size ",
                                     vocabulary, "; put the tokenizer that the model was trained with"));
  }
  return tokenizer;
}

absl::StatusOr<std::unique_ptr<Tokenizer>> LoadVocabulary(const std::filesystem::path& folder, int32_t vocabulary) {
  const std::filesystem::path rules_path = folder / "vocabulary.json";
  const std::filesystem::path symbols_path = folder / "vocab.txt";
  PALIMPSEST_ASSIGN_OR_RETURN(std::string rules_bytes, ReadFile(rules_path, kMaxRulesBytes));
  absl::StatusOr<VocabularyRules> rules = ParseVocabularyRules(rules_bytes);
  if (!rules.ok()) return Refuse(rules_path, std::string(rules.status().message()));
  PALIMPSEST_ASSIGN_OR_RETURN(std::string symbols, ReadFile(symbols_path, kMaxModelBytes));
  absl::StatusOr<std::unique_ptr<Tokenizer>> tokenizer = MakeVocabularyTokenizer(symbols, *rules);
  if (!tokenizer.ok()) return Refuse(symbols_path, std::string(tokenizer.status().message()));
  if (!Covers(**tokenizer, vocabulary)) {
    return Refuse(symbols_path,
                  absl::StrCat("has ", (*tokenizer)->vocabulary(), " symbols, but config.json says vocab_size ",
                               vocabulary, "; put the vocabulary that the model was trained with"));
  }
  return tokenizer;
}

absl::StatusOr<std::unique_ptr<Tokenizer>> LoadByFormat(const std::string& folder, int32_t vocabulary) {
  const std::filesystem::path path(folder);
  std::error_code error;
  if (!std::filesystem::is_directory(path, error)) return Refuse(path, "is not a folder");
  const auto has = [&](const char* name) {
    return std::filesystem::exists(std::filesystem::symlink_status(path / name, error));
  };
  const bool has_model = has("tokenizer.model");
  const bool has_vocabulary = has("vocabulary.json");
  if (has_model && has_vocabulary) {
    return Refuse(path,
                  "has both a tokenizer.model and a vocabulary.json; keep the one that the model was trained with");
  }
  if (has_model) return LoadSentencePiece(path / "tokenizer.model", vocabulary);
  if (has_vocabulary) return LoadVocabulary(path, vocabulary);
  if (has("vocab.txt")) {
    return Refuse(path / "vocab.txt",
                  "has no vocabulary.json beside it, which says how a text is cut into its symbols; put one there, for "
                  "words: {\"kind\": \"word\", \"unk\": \"<unk>\", \"eos\": \"<eos>\"}");
  }
  // A model with one of these was not trained on bytes: reading it so would give nonsense.
  constexpr std::string_view kUnsupported[] = {"tokenizer.json", "vocab.json",   "merges.txt",
                                               "tiktoken.model", "spiece.model", "rwkv_vocab_v20230424.txt"};
  for (const std::string_view name : kUnsupported) {
    if (!std::filesystem::exists(path / name, error)) continue;
    return Refuse(path / name,
                  "is a tokenizer format that is not supported; put the model's SentencePiece file beside it as "
                  "tokenizer.model, if it has one");
  }
  if (vocabulary < kByteVocabulary) {
    return Refuse(path, absl::StrCat("has no tokenizer.model, and a vocabulary of ", vocabulary,
                                     " is too small for bytes, which take ", kByteVocabulary,
                                     "; put the model's tokenizer.model there"));
  }
  if (vocabulary > kMostByteVocabulary) {
    return Refuse(path,
                  absl::StrCat("has no tokenizer.model, and a vocabulary of ", vocabulary,
                               " is too large for bytes, which take ", kByteVocabulary, " to ", kMostByteVocabulary,
                               "; put the model's tokenizer.model there, or its vocab.txt with a "
                               "vocabulary.json (a tokenizer.json is not supported)"));
  }
  return std::make_unique<ByteTokenizer>(vocabulary);
}

}  // namespace

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::Load(const std::string& folder, int32_t vocabulary,
                                                           int32_t bos_token_id) {
  absl::StatusOr<std::unique_ptr<Tokenizer>> tokenizer = LoadByFormat(folder, vocabulary);
  const std::filesystem::path path = std::filesystem::path(folder) / "tokenizer_config.json";
  std::error_code error;
  if (!tokenizer.ok() || !std::filesystem::exists(std::filesystem::symlink_status(path, error))) return tokenizer;
  PALIMPSEST_ASSIGN_OR_RETURN(std::string bytes, ReadFile(path, kMaxTokenizerConfigBytes));
  absl::StatusOr<TokenizerRules> rules = ParseTokenizerRules(bytes);
  if (!rules.ok()) return Refuse(path, std::string(rules.status().message()));
  if (!rules->add_bos) return tokenizer;
  const bool has_pieces = (*tokenizer)->kind() != "bytes";
  const int32_t bos = has_pieces ? (*tokenizer)->Find(rules->bos) : bos_token_id;
  if (bos < 0) {
    return Refuse(path, has_pieces
                            ? absl::StrCat("add_bos_token is true, but no token is written \"", rules->bos,
                                           "\", as bos_token says; correct it, or set add_bos_token to false")
                            : "add_bos_token is true, but bytes have no token that begins a text, and config.json has "
                              "no bos_token_id; set one of them");
  }
  (*tokenizer)->bos_ = bos;
  return tokenizer;
}

std::vector<int32_t> Tokenizer::Encode(std::string_view text, bool first, int64_t* unknown, int64_t max_tokens) const {
  std::vector<int32_t> ids;
  int64_t unknown_tokens = 0;
  if (first && bos_ >= 0) ids.push_back(bos_);
  Append(text, first, static_cast<size_t>(std::max<int64_t>(max_tokens, 0)), ids, unknown_tokens);
  if (unknown != nullptr) *unknown = unknown_tokens;
  return ids;
}

std::string Tokenizer::Decode(std::span<const int32_t> ids) const {
  Utf8Stream stream;
  std::string text;
  int32_t previous = kNoToken;
  for (const int32_t id : ids) {
    text += stream.Push(Bytes(id, previous));
    if (previous != kNoToken || !Bytes(id, kSomeToken).empty()) previous = id;
  }
  return text + stream.Flush();
}

}  // namespace palimpsest
