#include "server/engine/sequence.h"

#include <algorithm>
#include <memory>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "server/session/no_memory.h"

namespace palimpsest {
namespace {

// True if no exponent is all ones. `magnitude` masks the sign off, `infinity` is the least value that is not finite.
template <typename Bits>
bool AllBelow(const std::byte* data, int64_t bytes, Bits magnitude, Bits infinity) {
  const auto* values = reinterpret_cast<const Bits*>(data);
  Bits largest = 0;
  for (int64_t i = 0; i < bytes / static_cast<int64_t>(sizeof(Bits)); ++i) {
    largest = std::max(largest, static_cast<Bits>(values[i] & magnitude));
  }
  return largest < infinity;
}

bool AreFinite(DType dtype, const std::byte* data, int64_t bytes) {
  switch (dtype) {
    case DType::kF32:
      return AllBelow<uint32_t>(data, bytes, 0x7FFFFFFF, 0x7F800000);
    case DType::kBF16:
      return AllBelow<uint16_t>(data, bytes, 0x7FFF, 0x7F80);
    case DType::kF16:
      return AllBelow<uint16_t>(data, bytes, 0x7FFF, 0x7C00);
    case DType::kI32:
    case DType::kI64:
      return true;
  }
  return true;
}

}  // namespace

Sequence::Sequence(RequestId id, EngineRequest taken, std::span<const int32_t> end_tokens)
    : id(id),
      request(std::move(taken)),
      prompt_tokens(std::ssize(request.prompt)),
      stop_tokens(request.stop_tokens),
      head(request.initial == nullptr ? SequenceHead{} : request.initial->head),
      // The text of a prompt comes between, so a character that the last reply began is not finished by this one.
      reply(request.stop_strings, request.prompt.empty() ? head.undecoded : std::string()) {
  initial_position = head.position;
  head.recent.reserve(SequenceHead::kPenaltyWindow);
  if (!request.ignore_end_of_text) stop_tokens.insert(stop_tokens.end(), end_tokens.begin(), end_tokens.end());
  std::ranges::sort(stop_tokens);
}

Scheduler::Job Sequence::MakeJob() const {
  return {.id = id,
          .deadline = request.deadline,
          .feed = head.pending >= 0 && prompt_tokens > 0,
          .prefill_rows = std::max<int64_t>(prompt_tokens - 1, 0),
          .decode = generates(),
          .decode_rows = generates() ? request.max_tokens : 0,
          .owner = request.owner,
          .share = {.weight = share.weight,
                    .max_slots = share.max_slots.value_or(Scheduler::Share().max_slots),
                    .prefill_budget = share.prefill_budget.value_or(Scheduler::Share().prefill_budget)}};
}

void Sequence::TakeBack() {
  head = before->head;
  --generated_tokens;
  taken_back = true;
}

void Sequence::CompletePrompt() {
  if (!request.prompt.empty()) head.undecoded.clear();
  for (const int32_t token : request.prompt) head.Append(token);
  request.prompt = {};
}

bool Sequence::IsStopToken(int32_t token) const { return std::ranges::binary_search(stop_tokens, token); }

int32_t Sequence::ReadToken(const Tokenizer& tokenizer) {
  if (!unread_after) return -1;
  ReplyText::Piece piece = reply.Push(tokenizer.Bytes(head.pending, *unread_after));
  unread_after.reset();
  delta.text += piece.text;
  head.undecoded = reply.undecoded();
  return piece.stop;
}

bool Sequence::Keeps(Ending ending) const {
  return ending == Ending::kDone || (ending == Ending::kEarly && generated_tokens > 0);
}

bool Sequence::Commits(Ending ending) const {
  return request.lease && Keeps(ending) && head.position != initial_position;
}

bool Sequence::HandsOutState(Ending ending) const {
  return ending == Ending::kDone && (request.want_state || request.want_digest);
}

namespace {

std::shared_ptr<State> NewState(const StateFormat& format, const SequenceHead& head) {
  auto state = std::make_shared<State>();
  state->format = format;
  state->head = head;
  state->data = AlignedBytes(format.UsedBytes(head.processed()));
  return state;
}

}  // namespace

absl::StatusOr<std::shared_ptr<State>> BeginCopyState(const StateFormat& format, const SequenceHead& head,
                                                      SlotPool& slots, SlotHandle slot, SlotCopy* copy) {
  return OrNoMemory("the state of a reply", [&]() -> absl::StatusOr<std::shared_ptr<State>> {
    std::shared_ptr<State> state = NewState(format, head);
    PALIMPSEST_ASSIGN_OR_RETURN(*copy,
                                slots.BeginCopyOut(slot, format.UsedRanges(head.processed()), state->data.data()));
    return state;
  });
}

absl::StatusOr<std::shared_ptr<State>> CopyState(const StateFormat& format, const SequenceHead& head, SlotPool& slots,
                                                 SlotHandle slot, std::shared_ptr<State> used) {
  return OrNoMemory("the state of a reply", [&]() -> absl::StatusOr<std::shared_ptr<State>> {
    const int64_t tokens = head.processed();
    if (used == nullptr || used->data.size() != format.UsedBytes(tokens)) used = NewState(format, head);
    used->head = head;
    PALIMPSEST_RETURN_IF_ERROR(slots.CopyOut(slot, format.UsedRanges(tokens), used->data.data()));
    return used;
  });
}

absl::Status Lost(const Sequence& sequence, const absl::Status& status) {
  std::string message(status.message());
  if (sequence.request.lease) {
    absl::StrAppend(&message, "; the session stands where it was before the request, at position ",
                    sequence.initial_position);
  }
  return absl::Status(status.code(), message);
}

absl::Status LostWithDevice(const Sequence& sequence, const absl::Status& status) {
  return Lost(sequence, absl::UnavailableError(status.message()));
}

bool IsFinite(const StateLayout& layout, const State& state) {
  const std::byte* data = state.data.data();
  auto piece = layout.pieces().begin();
  for (const ByteRange& range : layout.UsedRanges(state.head.processed())) {
    const int64_t end = range.offset + range.bytes;
    // The pieces, or parts of them, that the range has.
    for (; piece != layout.pieces().end() && piece->offset < end; ++piece) {
      const int64_t from = std::max(piece->offset, range.offset), to = std::min(piece->offset + piece->bytes, end);
      if (from < to && !AreFinite(piece->dtype, data + (from - range.offset), to - from)) return false;
      if (piece->offset + piece->bytes > end) break;
    }
    data += range.bytes;
  }
  return true;
}

}  // namespace palimpsest
