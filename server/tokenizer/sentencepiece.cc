#include "server/tokenizer/sentencepiece.h"

#include <algorithm>
#include <cfloat>
#include <cstdint>
#include <memory>
#include <queue>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_replace.h"
#include "base/status_macros.h"
#include "server/tokenizer/normalizer.h"
#include "server/tokenizer/prefix_index.h"
#include "server/tokenizer/sentencepiece_model.h"
#include "server/tokenizer/utf8.h"

namespace palimpsest {
namespace {

using PieceType = SentencePieceModel::PieceType;

// A stretch of normalised text and the piece it became; -1: no piece has it.
struct Cut {
  std::string_view text;
  int32_t id;
};

// The pieces that text can become, and two ways to choose among them. Read-only after construction.
class Segmenter {
 public:
  virtual ~Segmenter() = default;
  // Cuts `text`, which is not empty and valid UTF-8, and appends the cuts in order.
  virtual void Segment(std::string_view text, std::vector<Cut>& cuts) const = 0;
};

PrefixIndex IndexOfType(const SentencePieceModel& model, bool (*wanted)(PieceType)) {
  std::vector<std::pair<std::string_view, int32_t>> words;
  for (size_t id = 0; id < model.pieces.size(); ++id) {
    if (wanted(model.pieces[id].type)) words.emplace_back(model.pieces[id].text, static_cast<int32_t>(id));
  }
  return PrefixIndex(std::move(words));
}

bool IsUserDefined(PieceType type) { return type == PieceType::kUserDefined; }
bool IsText(PieceType type) {
  return type == PieceType::kNormal || type == PieceType::kUserDefined || type == PieceType::kUnused;
}

// Starts from characters (and user-defined pieces, which stay whole) and joins the neighbours whose union is the piece
// of the best score, leftmost first, until none is.
class BpeSegmenter final : public Segmenter {
 public:
  explicit BpeSegmenter(const SentencePieceModel& model)
      : model_(model), user_defined_(IndexOfType(model, IsUserDefined)) {
    for (size_t id = 0; id < model.pieces.size(); ++id) {
      if (IsText(model.pieces[id].type)) id_of_.emplace(model.pieces[id].text, static_cast<int32_t>(id));
    }
  }

  void Segment(std::string_view text, std::vector<Cut>& cuts) const override {
    std::vector<Symbol> symbols = Split(text);
    Joins joins;
    for (int32_t i = 1; i < static_cast<int32_t>(symbols.size()); ++i) ConsiderJoin(symbols, i - 1, i, joins);
    while (!joins.queue.empty()) {
      const Join join = joins.queue.top();
      joins.queue.pop();
      Symbol& left = symbols[join.left];
      Symbol& right = symbols[join.right];
      // Has one of them been joined to another since?
      if (left.text.empty() || right.text.empty() || left.text.size() + right.text.size() != join.size) continue;
      left.text = Union(left, right);
      left.next = right.next;
      if (right.next >= 0) symbols[right.next].previous = join.left;
      right.text = {};
      ConsiderJoin(symbols, left.previous, join.left, joins);
      ConsiderJoin(symbols, join.left, left.next, joins);
    }
    for (int32_t i = 0; i >= 0; i = symbols[i].next) AppendUsed(symbols[i].text, joins, cuts);
  }

 private:
  struct Symbol {
    std::string_view text;  // empty once joined to the one before
    int32_t previous;       // -1 at the ends
    int32_t next;
    bool whole;  // a user-defined piece: joins nothing
  };
  struct Join {
    float score;
    int32_t left;
    int32_t right;
    size_t size;

    bool operator<(const Join& other) const { return score != other.score ? score < other.score : left > other.left; }
  };
  struct Joins {
    std::priority_queue<Join> queue;
    // How each unused piece came about: such pieces only lead to others, and are taken apart again in the end.
    absl::flat_hash_map<std::string_view, std::pair<std::string_view, std::string_view>> halves;
  };

  static std::string_view Union(const Symbol& left, const Symbol& right) {
    return {left.text.data(), left.text.size() + right.text.size()};
  }

  std::vector<Symbol> Split(std::string_view text) const {
    std::vector<Symbol> symbols;
    while (!text.empty()) {
      const size_t matched = user_defined_.LongestPrefix(text);
      const size_t length = matched > 0 ? matched : FrontOf(text).length;
      const auto index = static_cast<int32_t>(symbols.size());
      symbols.push_back({text.substr(0, length), index - 1, index + 1, matched > 0});
      text.remove_prefix(length);
    }
    symbols.back().next = -1;
    return symbols;
  }

  void ConsiderJoin(const std::vector<Symbol>& symbols, int32_t left, int32_t right, Joins& joins) const {
    if (left < 0 || right < 0 || symbols[left].whole || symbols[right].whole) return;
    const std::string_view joined = Union(symbols[left], symbols[right]);
    const auto found = id_of_.find(joined);
    if (found == id_of_.end()) return;
    const SentencePieceModel::Piece& piece = model_.pieces[found->second];
    joins.queue.push({piece.score, left, right, joined.size()});
    if (piece.type == PieceType::kUnused) joins.halves[joined] = {symbols[left].text, symbols[right].text};
  }

  void AppendUsed(std::string_view text, const Joins& joins, std::vector<Cut>& cuts) const {
    std::vector<std::string_view> stack = {text};
    while (!stack.empty()) {
      const std::string_view part = stack.back();
      stack.pop_back();
      const auto found = id_of_.find(part);
      const int32_t id = found == id_of_.end() ? -1 : found->second;
      const auto halves = joins.halves.find(part);
      if (id >= 0 && model_.pieces[id].type == PieceType::kUnused && halves != joins.halves.end()) {
        stack.push_back(halves->second.second);
        stack.push_back(halves->second.first);
      } else {
        cuts.push_back({part, id});
      }
    }
  }

  const SentencePieceModel& model_;
  PrefixIndex user_defined_;
  absl::flat_hash_map<std::string_view, int32_t> id_of_;
};

// The cut whose scores, which are log-probabilities, sum to the most (Viterbi).
class UnigramSegmenter final : public Segmenter {
 public:
  explicit UnigramSegmenter(const SentencePieceModel& model) : model_(model), pieces_(IndexOfType(model, IsText)) {
    for (const SentencePieceModel::Piece& piece : model.pieces) {
      if (piece.type != PieceType::kNormal) continue;
      min_score_ = std::min(min_score_, piece.score);
      max_score_ = std::max(max_score_, piece.score);
    }
  }

  void Segment(std::string_view text, std::vector<Cut>& cuts) const override {
    constexpr float kUnknownPenalty = 10.0f;
    struct Best {
      float score = 0.0f;
      int64_t begin = -1;  // of the piece that ends here; -1: nothing does yet
      int32_t id = -1;
    };
    std::vector<Best> best_ending(text.size() + 1);
    for (size_t begin = 0; begin < text.size();) {
      const size_t character = FrontOf(text.substr(begin)).length;
      const float score_so_far = best_ending[begin].score;
      const auto consider = [&](size_t length, int32_t id, double score) {
        Best& best = best_ending[begin + length];
        const double total = score + score_so_far;
        if (best.begin < 0 || total > best.score) {
          best = {static_cast<float>(total), static_cast<int64_t>(begin), id};
        }
      };
      bool character_has_piece = false;
      pieces_.ForEachPrefix(text.substr(begin), [&](size_t length, int32_t id) {
        const SentencePieceModel::Piece& piece = model_.pieces[id];
        if (piece.type == PieceType::kUnused) return;
        character_has_piece |= length == character;
        // A user-defined piece wins over any other cut.
        consider(length, id, IsUserDefined(piece.type) ? static_cast<float>(length) * max_score_ - 0.1 : piece.score);
      });
      if (!character_has_piece) consider(character, -1, min_score_ - kUnknownPenalty);
      begin += character;
    }
    const auto from = static_cast<int64_t>(cuts.size());
    for (auto end = static_cast<int64_t>(text.size()); end > 0; end = best_ending[end].begin) {
      const Best& best = best_ending[end];
      cuts.push_back({text.substr(best.begin, end - best.begin), best.id});
    }
    std::reverse(cuts.begin() + from, cuts.end());
  }

 private:
  const SentencePieceModel& model_;
  PrefixIndex pieces_;
  float min_score_ = FLT_MAX;
  float max_score_ = FLT_MIN;
};

// Finds where a long text may be cut: between two characters that stand side by side in no piece.
class SafeCuts {
 public:
  explicit SafeCuts(const SentencePieceModel& model) {
    for (const SentencePieceModel::Piece& piece : model.pieces) {
      if (!IsText(piece.type)) continue;
      std::string_view rest = piece.text;
      for (char32_t last = TakeCharacter(rest); !rest.empty();) {
        const char32_t next = TakeCharacter(rest);
        pairs_.insert(Pair(last, next));
        last = next;
      }
    }
  }

  // Bytes of a block at the front of `text`, which are few where the text allows it. `ends`: nothing follows the text;
  // else 0 if it has no place where it may be cut.
  size_t BlockLength(std::string_view text, bool ends) const {
    constexpr size_t kEnough = 4096;
    std::string_view rest = text;
    size_t end = 0;
    for (char32_t last = 0; !rest.empty();) {
      const size_t before = rest.size();
      const char32_t next = TakeCharacter(rest);
      if (end >= kEnough && !pairs_.contains(Pair(last, next))) return end;
      last = next;
      end += before - rest.size();
    }
    return ends ? end : 0;
  }

 private:
  static char32_t TakeCharacter(std::string_view& rest) {
    const size_t length = FrontOf(rest).length;
    const char32_t code_point = CodePointOf(rest.substr(0, length));
    rest.remove_prefix(length);
    return code_point;
  }
  static uint64_t Pair(char32_t left, char32_t right) { return uint64_t{left} << 32 | right; }

  absl::flat_hash_set<uint64_t> pairs_;
};

class SentencePieceTokenizer final : public Tokenizer {
 public:
  SentencePieceTokenizer(std::unique_ptr<const SentencePieceModel> model, Normalizer normalizer)
      : model_(std::move(model)), normalizer_(std::move(normalizer)), safe_cuts_(*model_) {
    if (model_->algorithm == SentencePieceModel::Algorithm::kBpe) {
      segmenter_ = std::make_unique<BpeSegmenter>(*model_);
    } else {
      segmenter_ = std::make_unique<UnigramSegmenter>(*model_);
    }
    for (const SentencePieceModel::Piece& piece : model_->pieces) {
      bytes_.push_back(BytesOf(piece));
      longest_piece_ = std::max(longest_piece_, piece.text.size());
    }
    for (int byte = 0; byte < 256 && model_->byte_fallback; ++byte) {
      bytes_[model_->byte_id[byte]] = std::string(1, static_cast<char>(byte));
    }
  }

  std::string_view kind() const override { return "sentencepiece"; }
  int32_t vocabulary() const override { return static_cast<int32_t>(bytes_.size()); }

  std::string_view Bytes(int32_t id, int32_t previous) const override {
    if (id < 0 || id >= vocabulary()) return {};
    std::string_view bytes = bytes_[id];
    const bool is_dropped = BeginsAText(previous) && (model_->add_dummy_prefix || model_->remove_extra_whitespaces);
    if (is_dropped && model_->pieces[id].text.starts_with(kSpaceSymbol)) bytes.remove_prefix(1);
    return bytes;
  }

 protected:
  void Append(std::string_view text, bool first, size_t most, std::vector<int32_t>& ids,
              int64_t& unknown) const override {
    using Next = Normalizer::Reader::Next;
    constexpr size_t kBytesAtOnce = 64 << 10;
    Normalizer::Reader reader(normalizer_, text, first);
    std::string characters;
    size_t enough = kBytesAtOnce;
    for (Next next = Next::kText; next != Next::kEnd && ids.size() <= most;) {
      next = reader.Read(enough, characters);
      std::string_view rest = characters;
      for (size_t length = 1; !rest.empty() && ids.size() <= most; rest.remove_prefix(length)) {
        length = safe_cuts_.BlockLength(rest, /*ends=*/next != Next::kText);
        if (length == 0) break;
        AppendBlock(rest.substr(0, length), ids, unknown);
      }
      // Even the longest pieces would be too many. (Without pieces for bytes, any number of characters may be unknown
      // and become one token.)
      if (model_->byte_fallback && ids.size() <= most && rest.size() / longest_piece_ > most - ids.size())
        ids.resize(most + 1, model_->unknown_id);
      // What could not be cut is looked at again when there is twice as much.
      enough = std::max(kBytesAtOnce, 2 * rest.size());
      characters.erase(0, characters.size() - rest.size());
      if (next == Next::kRaw) AppendUnknown(reader.raw(), ids, unknown);
    }
  }
  int32_t Find(std::string_view piece) const override {
    const auto it = std::ranges::find(model_->pieces, piece, [](const auto& p) { return std::string_view(p.text); });
    return it == model_->pieces.end() ? -1 : static_cast<int32_t>(it - model_->pieces.begin());
  }

 private:
  void AppendBlock(std::string_view text, std::vector<int32_t>& ids, int64_t& unknown) const {
    std::vector<Cut> cuts;
    segmenter_->Segment(text, cuts);
    for (const Cut& cut : cuts) {
      if (cut.id >= 0) {
        ids.push_back(cut.id);
      } else {
        AppendUnknown(cut.text, ids, unknown);
      }
    }
  }
  std::string BytesOf(const SentencePieceModel::Piece& piece) const {
    if (piece.type == PieceType::kControl) return "";
    if (piece.type == PieceType::kUnknown) return model_->unknown_surface;
    return absl::StrReplaceAll(piece.text, {{kSpaceSymbol, " "}});
  }

  // What no piece has, byte by byte; or one unknown token for a run of it.
  void AppendUnknown(std::string_view bytes, std::vector<int32_t>& ids, int64_t& unknown_tokens) const {
    if (model_->byte_fallback) {
      for (const char byte : bytes) ids.push_back(model_->byte_id[static_cast<uint8_t>(byte)]);
    } else if (ids.empty() || ids.back() != model_->unknown_id) {
      ids.push_back(model_->unknown_id);
      ++unknown_tokens;
    }
  }

  std::unique_ptr<const SentencePieceModel> model_;  // what the others keep views of
  Normalizer normalizer_;
  SafeCuts safe_cuts_;
  std::unique_ptr<const Segmenter> segmenter_;
  std::vector<std::string> bytes_;  // by id
  size_t longest_piece_ = 1;        // bytes
};

}  // namespace

absl::StatusOr<std::unique_ptr<Tokenizer>> MakeSentencePieceTokenizer(std::string_view model_bytes) {
  PALIMPSEST_ASSIGN_OR_RETURN(SentencePieceModel parsed, ParseSentencePieceModel(model_bytes));
  auto model = std::make_unique<const SentencePieceModel>(std::move(parsed));
  PALIMPSEST_ASSIGN_OR_RETURN(Normalizer normalizer, Normalizer::Create(*model, IndexOfType(*model, IsUserDefined)));
  return std::make_unique<SentencePieceTokenizer>(std::move(model), std::move(normalizer));
}

}  // namespace palimpsest
