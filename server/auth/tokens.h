// The file of --auth_tokens_file: who may call. docs/owners.md is its manual.
//
//   {
//     "version": 1,
//     "owners": {
//       "search": {
//         "roles": ["user"],
//         "token_sha256": ["2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae"],
//         "certificates": ["URI:spiffe://example.org/search"],
//         "share": {"weight": 2, "max_sessions": 200}
//       }
//     }
//   }
//
// Tokens are not in it, only their SHA-256: who reads the file cannot call. A token is found by its hash, so the time
// that takes says nothing about the tokens that there are.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "base/sha256.h"
#include "server/auth/identity.h"
#include "server/auth/owner_share.h"

namespace palimpsest {

// "URI:...", "DNS:..." or "CN:...", with 1 to 255 bytes after the colon, none a control character.
bool IsCertificateName(std::string_view text);

// What the file says. Immutable; thread-safe.
class OwnerTable {
 public:
  struct Owner {
    Identity identity;
    OwnerShare share;
  };
  static constexpr int64_t kMaxBytes = int64_t{1} << 20;
  static constexpr size_t kMaxOwners = 1024;
  static constexpr size_t kMaxTokens = 64;        // of one owner
  static constexpr size_t kMaxCertificates = 64;  // of one owner

  OwnerTable(OwnerTable&&) = default;
  OwnerTable& operator=(OwnerTable&&) = default;

  // Any bytes in. INVALID_ARGUMENT, "<where>: <path>: <what, and what is accepted>": not JSON, too large, a key that is
  // not known or given twice, a value out of its bounds, or a token or certificate of two owners.
  static absl::StatusOr<OwnerTable> Parse(std::string_view text, const std::string& where);

  // Each is null if there is none such.
  const Owner* FindToken(std::string_view token) const;
  const Owner* FindCertificate(std::string_view name) const;
  const Owner* FindOwner(std::string_view id) const;

  const std::map<std::string, Owner, std::less<>>& owners() const { return owners_; }

 private:
  class Reader;
  OwnerTable() = default;
  // Equality of digests takes the same time wherever they differ.
  struct SameDigest {
    bool operator()(const Sha256Digest& a, const Sha256Digest& b) const;
  };

  // Nodes of the map stay where they are, also when the table is moved.
  std::map<std::string, Owner, std::less<>> owners_;
  absl::flat_hash_map<Sha256Digest, const Owner*, absl::Hash<Sha256Digest>, SameDigest> tokens_;
  absl::flat_hash_map<std::string, const Owner*> certificates_;
};

}  // namespace palimpsest
