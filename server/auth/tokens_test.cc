#include "server/auth/tokens.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "base/resource_id.h"

namespace palimpsest {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

// printf %s letmein | sha256sum
constexpr char kLetMeIn[] = "1c8bfe8f801d79745c4631d09fff36c82aa37fc4cce4fc946683d7b336b63032";
// printf %s swordfish | sha256sum
constexpr char kSwordfish[] = "b9f195c5cc7ef6afadbfbc42892ad47d3b24c6bc94bb510c4564a90a14e8b799";

std::string GoodFile() {
  return absl::StrCat(R"({
    "version": 1,
    "owners": {
      "search": {"roles": ["user"], "token_sha256": [")",
                      kLetMeIn, R"("],
                 "certificates": ["URI:spiffe://example.org/search", "CN:Søk"],
                 "share": {"weight": 2.5, "max_slots": 16, "max_queue": 32, "prefill_budget": 64, "max_sessions": 0,
                           "max_snapshots": 7, "max_state_bytes": 1125899906842624}},
      "ops-2": {"roles": ["admin", "metrics"], "token_sha256": [")",
                      kSwordfish, R"("]}
    }})");
}

std::string ErrorOf(const std::string& text) {
  const absl::StatusOr<OwnerTable> table = OwnerTable::Parse(text, "owners.json");
  if (table.ok()) return "";
  EXPECT_EQ(table.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(table.status().message()), StartsWith("owners.json: "));
  return std::string(table.status().message());
}

TEST(OwnerTable, ReadsWhoMayDoWhat) {
  const absl::StatusOr<OwnerTable> table = OwnerTable::Parse(GoodFile(), "owners.json");
  ASSERT_TRUE(table.ok()) << table.status();
  const OwnerTable::Owner* const search = table->FindToken("letmein");
  ASSERT_NE(search, nullptr);
  EXPECT_EQ(search->identity.owner, "search");
  EXPECT_TRUE(search->identity.user);
  EXPECT_FALSE(search->identity.admin || search->identity.metrics);
  EXPECT_EQ(search->share, (OwnerShare{.weight = 2.5,
                                       .max_slots = 16,
                                       .max_queue = 32,
                                       .prefill_budget = 64,
                                       .max_sessions = 0,
                                       .max_snapshots = 7,
                                       .max_state_bytes = int64_t{1} << 50}));
  EXPECT_EQ(table->FindCertificate("URI:spiffe://example.org/search"), search);
  EXPECT_EQ(table->FindCertificate("CN:Søk"), search);
  EXPECT_EQ(table->FindOwner("search"), search);

  const OwnerTable::Owner* const ops = table->FindToken("swordfish");
  ASSERT_NE(ops, nullptr);
  EXPECT_FALSE(ops->identity.user);
  EXPECT_TRUE(ops->identity.admin && ops->identity.metrics);
  EXPECT_EQ(ops->share, OwnerShare());

  for (const char* token : {"", "letmei", "letmein ", "letmein\n", "LETMEIN", kLetMeIn}) {
    EXPECT_EQ(table->FindToken(token), nullptr) << token;
  }
  for (const char* name : {"", "CN:search", "DNS:spiffe://example.org/search", "URI:spiffe://example.org/search/"}) {
    EXPECT_EQ(table->FindCertificate(name), nullptr) << name;
  }
  EXPECT_EQ(table->FindOwner("nobody"), nullptr);
}

TEST(OwnerTable, AnOwnerMayHaveNoTokenLeft) {
  const auto table = OwnerTable::Parse(R"({"version": 1, "owners": {"a": {"roles": []}}})", "owners.json");
  ASSERT_TRUE(table.ok()) << table.status();
  EXPECT_EQ(table->owners().size(), 1);
}

TEST(OwnerTable, SaysWhatIsWrongAndWhere) {
  const std::pair<std::string, const char*> rows[] = {
      {"", "not valid JSON"},
      {"\xff\xfe", "not valid JSON"},
      {"[]", "expected an object, got array"},
      {"{}", "version: is missing; accepted: 1"},
      {R"({"version": 2, "owners": {}})", "version: is 2; accepted: 1"},
      {R"({"version": "1", "owners": {}})", "version: is '1'; accepted: 1"},
      {R"({"version": 1})", "owners: is missing; accepted: an object"},
      {R"({"version": 1, "owners": []})", "owners: is array; accepted: an object"},
      {R"({"version": 1, "owners": {}, "user": 1})", "the file: has the unknown key 'user'; known: version, owners"},
      {R"({"version": 1, "owners": {"a": {"roles": []}, "a": {"roles": []}}})", "names the key 'a' twice"},
      {R"({"version": 1, "owners": {"A": {"roles": []}}})", "owners: names 'A'; accepted: 1 to 63 characters"},
      {R"({"version": 1, "owners": {"": {"roles": []}}})", "owners: names ''; accepted"},
      {R"({"version": 1, "owners": {"-": {"roles": []}}})", "owners: names '-'; accepted"},
      {R"({"version": 1, "owners": {"other": {"roles": []}}})", "owners.other: is the name that metrics give"},
      {R"({"version": 1, "owners": {"a": 7}})", "owners.a: is number; accepted: an object"},
      {R"({"version": 1, "owners": {"a": {}}})",
       "owners.a.roles: is missing; accepted: a list of user, admin, metrics"},
      {R"({"version": 1, "owners": {"a": {"roles": "user"}}})",
       "owners.a.roles: is string; accepted: a list of at most"},
      {R"({"version": 1, "owners": {"a": {"roles": [1]}}})", "owners.a.roles[0]: is number; accepted: a string"},
      {R"({"version": 1, "owners": {"a": {"roles": ["user", "root"]}}})",
       "owners.a.roles[1]: is 'root'; accepted: user"},
      {R"({"version": 1, "owners": {"a": {"roles": [], "tokens": []}}})", "owners.a: has the unknown key 'tokens'"},
      {R"({"version": 1, "owners": {"a": {"roles": [], "share": []}}})", "owners.a.share: is array; accepted"},
      {R"({"version": 1, "owners": {"a": {"roles": [], "share": {"slots": 1}}}})",
       "owners.a.share: has the unknown key"},
      {R"({"version": 1, "owners": {"a": {"roles": [], "share": {"weight": 0}}}})", "share.weight: is 0; accepted"},
      {R"({"version": 1, "owners": {"a": {"roles": [], "share": {"weight": "2"}}}})", "share.weight: is '2'; accepted"},
      {R"({"version": 1, "owners": {"a": {"roles": [], "share": {"max_slots": 0}}}})",
       "owners.a.share.max_slots: is 0; accepted: a whole number of 1 to 65536"},
      {R"({"version": 1, "owners": {"a": {"roles": [], "share": {"max_queue": 1.5}}}})", "max_queue: is 1.5; accepted"},
      {R"({"version": 1, "owners": {"a": {"roles": [], "share": {"max_sessions": -1}}}})", "max_sessions: is -1; acc"},
      {R"({"version": 1, "owners": {"a": {"roles": [], "share": {"max_snapshots": 18446744073709551615}}}})",
       "max_snapshots: is 18446744073709551615; accepted"},
      {R"({"version": 1, "owners": {"a": {"roles": [], "share": {"max_state_bytes": 1e99}}}})", "accepted: a whole"},
      {R"({"version": 1, "owners": {"a": {"roles": [], "share": {"prefill_budget": null}}}})", "is null; accepted"},
      {R"({"version": 1, "owners": {"a": {"roles": [], "certificates": ["search"]}}})",
       "owners.a.certificates[0]: is 'search'; accepted: URI:..., DNS:... or CN:..."},
      {R"({"version": 1, "owners": {"a": {"roles": [], "certificates": ["CN:"]}}})", "certificates[0]: is 'CN:'"},
      {R"({"version": 1, "owners": {"a": {"roles": [], "certificates": ["CN:a\u0000b"]}}})", "certificates[0]: is"},
      {R"({"version": 1, "owners": {"a": {"roles": [], "certificates": ["CN:x", "CN:x"]}}})",
       "owners.a.certificates[1]: is there twice in the file"},
      {R"({"version": 1, "owners": {"a": {"roles": [], "token_sha256":
           ["e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"]}}})",
       "owners.a.token_sha256[0]: is the hash of an empty token"},
      {R"({"version": 1, "owners": {"a": {"roles": [[[[[]]]]]}}})", "nested deeper than 5"},
      {absl::StrReplaceAll(GoodFile(), {{kSwordfish, kLetMeIn}}), "owners.search.token_sha256[0]: is there twice"},
      {std::string(OwnerTable::kMaxBytes + 1, ' '), "has 1048577 bytes, at most 1048576 are read"},
  };
  for (const auto& [text, words] : rows) EXPECT_THAT(ErrorOf(text), HasSubstr(words)) << text.substr(0, 200);
}

TEST(OwnerTable, NeverTellsWhatStandsInThePlaceOfAHash) {
  const std::string error = ErrorOf(absl::StrReplaceAll(GoodFile(), {{kLetMeIn, "the-token-itself-by-mistake"}}));
  EXPECT_THAT(error, HasSubstr("owners.search.token_sha256[0]: has 27 characters that are no SHA-256; accepted: 64"));
  EXPECT_THAT(error, ::testing::Not(HasSubstr("mistake")));
  // Digits in capitals, and a digit too few or too many.
  for (const char* hash : {"1C8BFE8F801D79745C4631D09FFF36C82AA37FC4CCE4FC946683D7B336B63032",
                           "1c8bfe8f801d79745c4631d09fff36c82aa37fc4cce4fc946683d7b336b6303",
                           "1c8bfe8f801d79745c4631d09fff36c82aa37fc4cce4fc946683d7b336b630320"}) {
    EXPECT_THAT(ErrorOf(absl::StrReplaceAll(GoodFile(), {{kLetMeIn, hash}})), HasSubstr("no SHA-256")) << hash;
  }
}

TEST(OwnerTable, BoundsOwnersTokensAndCertificates) {
  std::string owners;
  for (size_t i = 0; i <= OwnerTable::kMaxOwners; ++i) absl::StrAppend(&owners, ",\"a", i, R"(": {"roles": []})");
  EXPECT_THAT(ErrorOf(absl::StrCat(R"({"version": 1, "owners": {)", owners.substr(1), "}}")),
              HasSubstr("owners: names 1025 owners; accepted: at most 1024"));
  std::string names;
  for (size_t i = 0; i <= OwnerTable::kMaxCertificates; ++i) absl::StrAppend(&names, ",\"CN:", i, "\"");
  EXPECT_THAT(ErrorOf(absl::StrCat(R"({"version": 1, "owners": {"a": {"roles": [], "certificates": [)", names.substr(1),
                                   "]}}}")),
              HasSubstr("owners.a.certificates: is a list of 65; accepted: a list of at most 64 strings"));
}

// Any bytes in, a status or a table out: cuts at every place, and every byte changed in some way.
TEST(OwnerTable, DamagedFilesAreRefusedOrReadButNothingElse) {
  const std::string good = GoodFile();
  for (size_t cut = 0; cut < good.size() - 1; ++cut) ErrorOf(good.substr(0, cut));
  std::mt19937 random(11);
  for (int round = 0; round < 20000; ++round) {
    std::string text = good;
    for (uint32_t changes = 1 + random() % 3; changes > 0; --changes) {
      const size_t at = random() % text.size();
      switch (random() % 4) {
        case 0:
          text[at] = static_cast<char>(random());
          break;
        case 1:
          text.erase(at, 1 + random() % 8);
          break;
        case 2:
          text = absl::StrCat(text.substr(0, at), text.substr(random() % text.size(), random() % 40), text.substr(at));
          break;
        default:
          text[at] = "{}[]\",:0123456789e-nulltrue"[random() % 27];
          break;
      }
      if (text.empty()) text.push_back(' ');
    }
    if (const auto table = OwnerTable::Parse(text, "owners.json"); table.ok()) {
      for (const auto& [id, owner] : table->owners()) EXPECT_TRUE(IsResourceId(id) && owner.identity.owner == id);
    }
  }
}

}  // namespace
}  // namespace palimpsest
