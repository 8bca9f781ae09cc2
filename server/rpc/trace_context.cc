#include "server/rpc/trace_context.h"

#include <algorithm>
#include <optional>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "base/random.h"

namespace palimpsest {
namespace {

constexpr uint8_t kKnownFlags = 0x03;  // sampled, random trace id
constexpr uint8_t kRandom = 0x02;
// The specification asks for at least 512 bytes and 32 members; more is not worth a place in every log line.
constexpr size_t kMaxStateBytes = 512;
constexpr size_t kMaxStateMembers = 32;

bool IsLowerHex(absl::string_view text) {
  return std::all_of(text.begin(), text.end(), [](char c) { return absl::ascii_isdigit(c) || (c >= 'a' && c <= 'f'); });
}

bool IsId(absl::string_view text) { return IsLowerHex(text) && text.find_first_not_of('0') != absl::string_view::npos; }

uint8_t FromHex(absl::string_view two) {
  const auto digit = [](char c) { return c <= '9' ? c - '0' : c - 'a' + 10; };
  return static_cast<uint8_t>(digit(two[0]) * 16 + digit(two[1]));
}

// version-format: "{2 hex}-{32 hex}-{16 hex}-{2 hex}", and for versions after 00 perhaps "-" and more.
std::optional<TraceContext> ParseParent(absl::string_view text) {
  constexpr size_t kLength = 55;
  if (text.size() < kLength || text[2] != '-' || text[35] != '-' || text[52] != '-') return std::nullopt;
  const absl::string_view version = text.substr(0, 2), trace = text.substr(3, 32), parent = text.substr(36, 16),
                          flags = text.substr(53, 2);
  if (!IsLowerHex(version) || version == "ff" || !IsId(trace) || !IsId(parent) || !IsLowerHex(flags)) {
    return std::nullopt;
  }
  if (text.size() > kLength && (version == "00" || text[kLength] != '-')) return std::nullopt;
  TraceContext context;
  context.trace_id = std::string(trace);
  context.parent_id = std::string(parent);
  context.flags = FromHex(flags) & kKnownFlags;
  return context;
}

// simple-key or multi-tenant key: [a-z0-9][a-z0-9_-*/]*, with one "@" between a tenant and a system.
bool IsStateKey(absl::string_view key) {
  const auto is_part = [](absl::string_view part, size_t most, bool digit_first) {
    if (part.empty() || part.size() > most) return false;
    if (!absl::ascii_islower(part[0]) && !(digit_first && absl::ascii_isdigit(part[0]))) return false;
    return std::all_of(part.begin(), part.end(), [](char c) {
      return absl::ascii_islower(c) || absl::ascii_isdigit(c) || c == '_' || c == '-' || c == '*' || c == '/';
    });
  };
  const size_t at = key.find('@');
  if (at == absl::string_view::npos) return is_part(key, 256, true);
  return is_part(key.substr(0, at), 241, true) && is_part(key.substr(at + 1), 14, false);
}

bool IsStateValue(absl::string_view value) {
  return !value.empty() && value.size() <= 256 && value.back() != ' ' &&
         std::all_of(value.begin(), value.end(), [](char c) { return c >= ' ' && c <= '~' && c != ',' && c != '='; });
}

// The list as one value; empty if any of it is not valid.
std::string JoinStates(const std::vector<absl::string_view>& states) {
  std::vector<absl::string_view> members, keys;
  for (const absl::string_view state : states) {
    for (absl::string_view member : absl::StrSplit(state, ',')) {
      member = absl::StripAsciiWhitespace(member);
      if (member.empty()) continue;  // allowed
      const size_t equals = member.find('=');
      if (equals == absl::string_view::npos) return "";
      const absl::string_view key = member.substr(0, equals);
      if (!IsStateKey(key) || !IsStateValue(member.substr(equals + 1))) return "";
      if (std::find(keys.begin(), keys.end(), key) != keys.end()) return "";
      keys.push_back(key);
      members.push_back(member);
    }
  }
  std::string joined = absl::StrJoin(members, ",");
  return members.size() > kMaxStateMembers || joined.size() > kMaxStateBytes ? "" : joined;
}

// Never zero, which no id may be.
uint64_t DrawId() {
  for (;;) {
    if (const uint64_t id = RandomNumber(); id != 0) return id;
  }
}

}  // namespace

std::string TraceContext::ToString() const {
  return absl::StrFormat("00-%s-%s-%02x", trace_id, span_id, static_cast<unsigned>(flags));
}

TraceContext ContinueTrace(const std::vector<absl::string_view>& traceparents,
                           const std::vector<absl::string_view>& tracestates) {
  std::optional<TraceContext> context;
  if (traceparents.size() == 1) context = ParseParent(traceparents[0]);
  if (context.has_value()) {
    context->trace_state = JoinStates(tracestates);
  } else {
    context.emplace();
    context->trace_id = absl::StrFormat("%016x%016x", DrawId(), DrawId());
    context->flags = kRandom;
  }
  context->span_id = absl::StrFormat("%016x", DrawId());
  return *context;
}

}  // namespace palimpsest
