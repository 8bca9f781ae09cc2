#include "server/auth/tokens.h"

#include <openssl/crypto.h>

#include <algorithm>
#include <cmath>
#include <initializer_list>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/quote.h"
#include "base/resource_id.h"
#include "server/json/json.h"

namespace palimpsest {
namespace {

using nlohmann::json;

constexpr int32_t kMaxDepth = 5;  // the file, "owners", an owner, a list or its share, and one for what is wrong
// Metrics count under this name whoever the file does not name.
constexpr std::string_view kReservedOwner = "other";

// A digest as 64 lower-case hexadecimal digits, which is what sha256sum prints.
bool ReadDigest(std::string_view text, Sha256Digest* digest) {
  const auto value_of = [](char c) {
    return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
  };
  if (text.size() != 2 * digest->size()) return false;
  for (size_t i = 0; i < digest->size(); ++i) {
    const int high = value_of(text[2 * i]);
    const int low = value_of(text[2 * i + 1]);
    if (high < 0 || low < 0) return false;
    (*digest)[i] = static_cast<uint8_t>(16 * high + low);
  }
  return true;
}

}  // namespace

bool IsCertificateName(std::string_view text) {
  const bool known = text.starts_with("URI:") || text.starts_with("DNS:") || text.starts_with("CN:");
  if (!known) return false;
  const std::string_view value = text.substr(text.find(':') + 1);
  return !value.empty() && value.size() <= 255 &&
         std::ranges::all_of(value, [](unsigned char c) { return c >= 0x20 && c != 0x7f; });
}

bool OwnerTable::SameDigest::operator()(const Sha256Digest& a, const Sha256Digest& b) const {
  return CRYPTO_memcmp(a.data(), b.data(), a.size()) == 0;
}

// Fills a table from the file's JSON. Each reader returns whether it succeeded; the first error stays.
class OwnerTable::Reader {
 public:
  Reader(const std::string& where, OwnerTable* table) : where_(where), table_(*table) {}

  bool ReadFile(const json& file) {
    if (!CheckKeys("", file, {"version", "owners"})) return false;
    if (!file.contains("version") || file["version"] != 1) {
      return Fail("version", absl::StrCat("is ", Shown(file, "version"), "; accepted: 1"));
    }
    if (!file.contains("owners") || !file["owners"].is_object()) {
      return Fail("owners", absl::StrCat("is ", Shown(file, "owners"), "; accepted: an object, owners by name"));
    }
    const json& owners = file["owners"];
    if (owners.size() > kMaxOwners) {
      return Fail("owners", absl::StrCat("names ", owners.size(), " owners; accepted: at most ", kMaxOwners));
    }
    return std::ranges::all_of(owners.items(),
                               [this](const auto& entry) { return ReadOwner(entry.key(), entry.value()); });
  }

  absl::Status TakeStatus() { return std::move(status_); }

 private:
  bool ReadOwner(const std::string& id, const json& value) {
    if (!IsResourceId(id)) {
      return Fail("owners", absl::StrCat("names ", Quoted(id), "; accepted: 1 to 63 characters of [a-z0-9-], the ",
                                         "first a letter"));
    }
    const std::string path = absl::StrCat("owners.", id);
    if (id == kReservedOwner) return Fail(path, "is the name that metrics give to all who are not named here");
    if (!value.is_object()) return Fail(path, absl::StrCat("is ", value.type_name(), "; accepted: an object"));
    if (!CheckKeys(path, value, {"roles", "token_sha256", "certificates", "share"})) return false;
    Owner& owner = table_.owners_[id];
    owner.identity = {.owner = id, .user = false, .admin = false, .metrics = false};
    return ReadRoles(path, value, &owner.identity) && ReadTokens(path, value, &owner) &&
           ReadCertificates(path, value, &owner) && ReadShare(path, value, &owner.share);
  }

  bool ReadRoles(const std::string& path, const json& object, Identity* identity) {
    const std::pair<std::string_view, bool*> roles[] = {
        {"user", &identity->user}, {"admin", &identity->admin}, {"metrics", &identity->metrics}};
    if (!object.contains("roles")) {
      return Fail(absl::StrCat(path, ".roles"), "is missing; accepted: a list of user, admin, metrics");
    }
    return ReadList(path, object, "roles", std::size(roles), [&](const std::string& at, const std::string& text) {
      for (const auto& [name, held] : roles) {
        if (text != name) continue;
        *held = true;
        return true;
      }
      return Fail(at, absl::StrCat("is ", Quoted(text), "; accepted: user, admin, metrics"));
    });
  }

  bool ReadTokens(const std::string& path, const json& object, const Owner* owner) {
    static const Sha256Digest& of_nothing = *new Sha256Digest(Sha256Of(""));
    return ReadList(path, object, "token_sha256", kMaxTokens, [&](const std::string& at, const std::string& text) {
      Sha256Digest digest;
      if (!ReadDigest(text, &digest)) {
        // The value is not told: it may be the token itself, and messages go into logs.
        return Fail(at, absl::StrCat("has ", text.size(), " characters that are no SHA-256; accepted: 64 lower-case ",
                                     "hexadecimal digits, from: printf %s TOKEN | sha256sum"));
      }
      if (digest == of_nothing) return Fail(at, "is the hash of an empty token");
      if (!table_.tokens_.try_emplace(digest, owner).second) return Fail(at, "is there twice in the file");
      return true;
    });
  }

  bool ReadCertificates(const std::string& path, const json& object, const Owner* owner) {
    return ReadList(
        path, object, "certificates", kMaxCertificates, [&](const std::string& at, const std::string& text) {
          if (!IsCertificateName(text)) {
            return Fail(at, absl::StrCat("is ", Quoted(text), "; accepted: URI:..., DNS:... or CN:..., with 1 to 255 ",
                                         "printable characters"));
          }
          if (!table_.certificates_.try_emplace(text, owner).second) return Fail(at, "is there twice in the file");
          return true;
        });
  }

  bool ReadShare(const std::string& path, const json& object, OwnerShare* share) {
    if (!object.contains("share")) return true;
    const std::string inner = absl::StrCat(path, ".share");
    const json& value = object["share"];
    if (!value.is_object()) return Fail(inner, absl::StrCat("is ", value.type_name(), "; accepted: an object"));
    return CheckKeys(inner, value,
                     {"weight", "max_slots", "max_queue", "prefill_budget", "max_sessions", "max_snapshots",
                      "max_state_bytes"}) &&
           ReadWeight(inner, value, &share->weight) &&
           ReadWhole(inner, value, "max_slots", 1, 65536, &share->max_slots) &&
           ReadWhole(inner, value, "max_queue", 1, 1 << 20, &share->max_queue) &&
           ReadWhole(inner, value, "prefill_budget", 1, 1 << 20, &share->prefill_budget) &&
           ReadWhole(inner, value, "max_sessions", 0, int64_t{1} << 40, &share->max_sessions) &&
           ReadWhole(inner, value, "max_snapshots", 0, int64_t{1} << 40, &share->max_snapshots) &&
           ReadWhole(inner, value, "max_state_bytes", 0, int64_t{1} << 50, &share->max_state_bytes);
  }

  bool ReadWeight(const std::string& path, const json& object, double* weight) {
    if (!object.contains("weight")) return true;
    const json& value = object["weight"];
    const double given = value.is_number() ? value.get<double>() : -1;
    if (!(given >= 0.01 && given <= 100)) {
      return Fail(absl::StrCat(path, ".weight"),
                  absl::StrCat("is ", Shown(object, "weight"), "; accepted: a number of 0.01 to 100"));
    }
    *weight = given;
    return true;
  }

  template <class T>
  bool ReadWhole(const std::string& path, const json& object, const char* key, int64_t least, int64_t most,
                 std::optional<T>* to) {
    if (!object.contains(key)) return true;
    const json& value = object[key];
    // What does not fit into a signed integer is an unsigned one to the parser, and too large here in any case.
    const bool fits = value.is_number_integer() &&
                      (!value.is_number_unsigned() || value.get<uint64_t>() <= static_cast<uint64_t>(most));
    if (!fits || value.get<int64_t>() < least || value.get<int64_t>() > most) {
      return Fail(absl::StrCat(path, ".", key),
                  absl::StrCat("is ", Shown(object, key), "; accepted: a whole number of ", least, " to ", most));
    }
    *to = static_cast<T>(value.get<int64_t>());
    return true;
  }

  // A missing key is an empty list. `read` takes a path and a text, and returns whether it was right.
  template <class Read>
  bool ReadList(const std::string& path, const json& object, const char* key, size_t most, const Read& read) {
    if (!object.contains(key)) return true;
    const std::string inner = absl::StrCat(path, ".", key);
    const json& list = object[key];
    if (!list.is_array() || list.size() > most) {
      return Fail(inner,
                  absl::StrCat("is ", list.is_array() ? absl::StrCat("a list of ", list.size()) : list.type_name(),
                               "; accepted: a list of at most ", most, " strings"));
    }
    for (size_t i = 0; i < list.size(); ++i) {
      const std::string at = absl::StrCat(inner, "[", i, "]");
      if (!list[i].is_string()) return Fail(at, absl::StrCat("is ", list[i].type_name(), "; accepted: a string"));
      if (!read(at, list[i].get_ref<const std::string&>())) return false;
    }
    return true;
  }

  bool CheckKeys(const std::string& path, const json& object, std::initializer_list<const char*> known) {
    for (const auto& [key, value] : object.items()) {
      if (std::ranges::find(known, key) != known.end()) continue;
      return Fail(path.empty() ? "the file" : path,
                  absl::StrCat("has the unknown key ", Quoted(key), "; known: ", absl::StrJoin(known, ", ")));
    }
    return true;
  }

  static std::string Shown(const json& object, const char* key) {
    if (!object.contains(key)) return "missing";
    const json& value = object[key];
    if (value.is_string()) return Quoted(value.get_ref<const std::string&>());
    return value.is_primitive() ? value.dump() : value.type_name();
  }

  bool Fail(const std::string& path, const std::string& what) {
    status_ = absl::InvalidArgumentError(absl::StrCat(where_, ": ", path, ": ", what));
    return false;
  }

  const std::string& where_;
  OwnerTable& table_;
  absl::Status status_;
};

absl::StatusOr<OwnerTable> OwnerTable::Parse(std::string_view text, const std::string& where) {
  const absl::StatusOr<json> file = ParseJsonObject(text, where, {.max_bytes = kMaxBytes, .max_depth = kMaxDepth});
  if (!file.ok()) return file.status();
  OwnerTable table;
  Reader reader(where, &table);
  if (!reader.ReadFile(*file)) return reader.TakeStatus();
  return table;
}

const OwnerTable::Owner* OwnerTable::FindToken(std::string_view token) const {
  const auto found = tokens_.find(Sha256Of(token));
  return found == tokens_.end() ? nullptr : found->second;
}

const OwnerTable::Owner* OwnerTable::FindCertificate(std::string_view name) const {
  const auto found = certificates_.find(std::string(name));
  return found == certificates_.end() ? nullptr : found->second;
}

const OwnerTable::Owner* OwnerTable::FindOwner(std::string_view id) const {
  const auto found = owners_.find(id);
  return found == owners_.end() ? nullptr : &found->second;
}

}  // namespace palimpsest
