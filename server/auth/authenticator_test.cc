#include "server/auth/authenticator.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <stdlib.h>
#include <sys/stat.h>

#include <filesystem>
#include <fstream>
#include <initializer_list>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "base/resource_id.h"

namespace palimpsest {
namespace {

using ::testing::HasSubstr;

constexpr char kOwners[] = R"({
  "version": 1,
  "owners": {
    "search": {
      "roles": ["user"],
      "token_sha256": ["1c8bfe8f801d79745c4631d09fff36c82aa37fc4cce4fc946683d7b336b63032"],
      "certificates": ["DNS:search.example.org"],
      "share": {"weight": 3}
    },
    "ops": {
      "roles": ["admin", "metrics"],
      "token_sha256": ["b9f195c5cc7ef6afadbfbc42892ad47d3b24c6bc94bb510c4564a90a14e8b799"],
      "certificates": ["CN:ops"]
    }
  }
})";

class AuthenticatorTest : public ::testing::Test {
 protected:
  AuthenticatorTest() {
    std::string folder = (std::filesystem::temp_directory_path() / "palimpsest_auth_XXXXXX").string();
    EXPECT_NE(mkdtemp(folder.data()), nullptr);
    folder_ = folder;
    path_ = folder + "/owners.json";
    Write(kOwners);
  }
  ~AuthenticatorTest() override { std::filesystem::remove_all(folder_); }

  void Write(const std::string& text) { std::ofstream(path_, std::ios::binary) << text; }

  std::unique_ptr<Authenticator> Make(AuthenticatorOptions options) {
    absl::StatusOr<std::unique_ptr<Authenticator>> made = Authenticator::Make(std::move(options));
    EXPECT_TRUE(made.ok()) << made.status();
    return made.ok() ? *std::move(made) : nullptr;
  }
  std::unique_ptr<Authenticator> WithFile(bool certificates = false) {
    return Make({.tokens_file = path_, .certificates = certificates});
  }

  std::string folder_;
  std::string path_;
};

absl::StatusOr<Identity> Ask(const Authenticator& authenticator, std::initializer_list<std::string_view> authorization,
                             const std::vector<std::string>& certificate = {}) {
  return authenticator.Authenticate(std::vector<std::string_view>(authorization), certificate);
}

void ExpectRefused(const absl::StatusOr<Identity>& identity, const char* words) {
  ASSERT_FALSE(identity.ok()) << identity->owner;
  EXPECT_EQ(identity.status().code(), absl::StatusCode::kUnauthenticated);
  EXPECT_THAT(std::string(identity.status().message()), HasSubstr(words));
}

TEST_F(AuthenticatorTest, WithoutFileAndCertificatesEverybodyIsOneOwnerWithAllRoles) {
  const auto authenticator = Make({});
  for (const auto& identity : {Ask(*authenticator, {}), Ask(*authenticator, {"Bearer whatever"})}) {
    ASSERT_TRUE(identity.ok());
    EXPECT_EQ(identity->owner, "default");
    EXPECT_TRUE(identity->user && identity->admin && identity->metrics);
  }
  EXPECT_TRUE(authenticator->MayReadMetrics(""));
  EXPECT_EQ(authenticator->LabelOf("default"), "default");
  EXPECT_FALSE(authenticator->Reread().has_value());
}

TEST_F(AuthenticatorTest, ATokenSaysWhoCalls) {
  const auto authenticator = WithFile();
  for (const char* header : {"Bearer letmein", "bearer letmein", "BEARER letmein"}) {
    const absl::StatusOr<Identity> identity = Ask(*authenticator, {header});
    ASSERT_TRUE(identity.ok()) << identity.status();
    EXPECT_EQ(identity->owner, "search");
    EXPECT_TRUE(identity->user);
    EXPECT_FALSE(identity->admin || identity->metrics);
  }
  ExpectRefused(Ask(*authenticator, {}), "send a token as metadata, authorization: Bearer TOKEN");
  for (const char* header : {"Bearer letmeinn", "Bearer  letmein", "Bearer letmein ", "Bearer default"}) {
    ExpectRefused(Ask(*authenticator, {header}), "not one that this server knows");
  }
  for (const char* header : {"", "Bearer", "Bearer ", "letmein", "Basic letmein", "Bearerletmein"}) {
    ExpectRefused(Ask(*authenticator, {header}), "is no token; accepted: Bearer and a token");
  }
  ExpectRefused(Ask(*authenticator, {"Bearer letmein", "Bearer swordfish"}), "2 authorization headers; accepted: one");
  ExpectRefused(Ask(*authenticator, {"Bearer " + std::string(5000, 'x')}), "at most 4096 bytes");
}

TEST_F(AuthenticatorTest, ACertificateThatTheFileNamesSaysWhoCallsUnlessATokenDoes) {
  const auto authenticator = WithFile(/*certificates=*/true);
  const std::vector<std::string> search{"URI:spiffe://x/y", "DNS:search.example.org", "CN:anything"};
  ASSERT_TRUE(Ask(*authenticator, {}, search).ok());
  EXPECT_EQ(Ask(*authenticator, {}, search)->owner, "search");
  EXPECT_EQ(Ask(*authenticator, {"Bearer swordfish"}, search)->owner, "ops");
  ExpectRefused(Ask(*authenticator, {"Bearer wrong"}, search), "not one that this server knows");
  ExpectRefused(Ask(*authenticator, {}, {"CN:nobody"}), "no owner has a certificate with the name 'CN:nobody'");
  ExpectRefused(Ask(*authenticator, {}, {"DNS:search.example.org", "CN:ops"}), "those of two owners, search and ops");
  ExpectRefused(Ask(*authenticator, {}), "or show a certificate that --auth_tokens_file names");
}

TEST_F(AuthenticatorTest, WithoutFileEachCertificateIsAnOwner) {
  const auto authenticator = Make({.certificates = true, .admin_identities = {"CN:ops"}});
  const absl::StatusOr<Identity> search = Ask(*authenticator, {}, {"CN:search"});
  ASSERT_TRUE(search.ok());
  EXPECT_EQ(search->owner, "cn-search");
  EXPECT_TRUE(search->user);
  EXPECT_FALSE(search->admin);
  const absl::StatusOr<Identity> ops = Ask(*authenticator, {}, {"CN:ops"});
  EXPECT_TRUE(ops.ok() && ops->user && ops->admin);
  // The common name of one that has other names is not what it is known by.
  EXPECT_FALSE(Ask(*authenticator, {}, {"DNS:x", "CN:ops"})->admin);
  ExpectRefused(Ask(*authenticator, {}), "the certificate names nobody");
  EXPECT_EQ(authenticator->LabelOf("cn-search"), "other");
}

TEST(OwnerOfCertificate, GivesEveryNameAnOwnerOfItsOwn) {
  EXPECT_EQ(OwnerOfCertificate("CN:search"), "cn-search");
  EXPECT_EQ(OwnerOfCertificate("DNS:search"), "dns-search");
  // printf %s CN:Search | sha256sum | cut -c 1-32
  EXPECT_EQ(OwnerOfCertificate("CN:Search"), "cn-search-875bfc0fa9c0f3000e35ba7f1bf87d77");
  std::set<std::string> owners;
  const std::string names[] = {"CN:a.b",
                               "CN:a-b",
                               "CN:A.B",
                               "CN:a b",
                               "DNS:a.b",
                               "URI:a.b",
                               "CN:" + std::string(255, 'x'),
                               "CN:" + std::string(254, 'x'),
                               "CN:" + std::string(26, 'x'),
                               "CN:" + std::string(27, 'x'),
                               "CN:\xc3\xbc",
                               "CN:\xc3\xb6"};
  for (const std::string& name : names) {
    const std::string owner = OwnerOfCertificate(name);
    EXPECT_TRUE(IsResourceId(owner)) << owner;
    EXPECT_TRUE(owners.insert(owner).second) << owner;
  }
}

TEST_F(AuthenticatorTest, MetricsAreForThoseWithTheRole) {
  const auto authenticator = WithFile();
  EXPECT_TRUE(authenticator->MayReadMetrics("Bearer swordfish"));
  for (const char* header : {"", "Bearer letmein", "Bearer nobody", "swordfish"}) {
    EXPECT_FALSE(authenticator->MayReadMetrics(header)) << header;
  }
}

TEST_F(AuthenticatorTest, SharesAndLabelsAreThoseOfTheFile) {
  const auto authenticator = WithFile();
  EXPECT_EQ(authenticator->ShareOf("search").weight, 3);
  EXPECT_EQ(authenticator->ShareOf("gone"), OwnerShare());
  EXPECT_EQ(authenticator->LabelOf("search"), "search");
  EXPECT_EQ(authenticator->LabelOf("gone"), "other");
  EXPECT_EQ(authenticator->LabelOf("default"), "other");
}

TEST_F(AuthenticatorTest, AChangedFileCountsAndABrokenOneDoesNot) {
  const auto authenticator = WithFile();
  EXPECT_FALSE(authenticator->Reread().has_value());

  // Tokens change hands, in a text of the same length at the same place.
  std::string swapped = kOwners;
  swapped.replace(swapped.find("1c8b"), 4, "1c8c");
  Write(swapped);
  ASSERT_TRUE(authenticator->Reread().has_value());
  ExpectRefused(Ask(*authenticator, {"Bearer letmein"}), "not one that this server knows");
  EXPECT_TRUE(Ask(*authenticator, {"Bearer swordfish"}).ok());

  Write("{\"version\": 1");
  const std::optional<absl::Status> broken = authenticator->Reread();
  ASSERT_TRUE(broken.has_value());
  EXPECT_EQ(broken->code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(broken->message()), HasSubstr(path_ + ": not valid JSON"));
  EXPECT_FALSE(authenticator->Reread().has_value()) << "told once";
  EXPECT_TRUE(Ask(*authenticator, {"Bearer swordfish"}).ok());

  std::filesystem::remove(path_);
  const std::optional<absl::Status> missing = authenticator->Reread();
  ASSERT_TRUE(missing.has_value());
  EXPECT_THAT(std::string(missing->message()), HasSubstr("cannot be read (No such file or directory)"));
  EXPECT_FALSE(authenticator->Reread().has_value());
  EXPECT_TRUE(Ask(*authenticator, {"Bearer swordfish"}).ok());

  // By renaming, as Kubernetes changes a mounted secret.
  std::ofstream(path_ + ".new") << kOwners;
  std::filesystem::rename(path_ + ".new", path_);
  const std::optional<absl::Status> again = authenticator->Reread();
  EXPECT_TRUE(again.has_value() && again->ok());
  EXPECT_TRUE(Ask(*authenticator, {"Bearer letmein"}).ok());
}

TEST_F(AuthenticatorTest, OptionsThatCannotBeAreRefused) {
  ASSERT_EQ(mkfifo((folder_ + "/fifo").c_str(), 0600), 0);
  const std::pair<AuthenticatorOptions, std::string> rows[] = {
      {{.tokens_file = folder_ + "/nowhere"}, "--auth_tokens_file is " + folder_ + "/nowhere, which cannot be read"},
      {{.tokens_file = folder_}, "which is no regular file"},
      {{.tokens_file = folder_ + "/fifo"}, "which is no regular file"},
      {{.tokens_file = "/dev/zero"}, "which is no regular file"},
      {{.tokens_file = path_, .certificates = true, .admin_identities = {"CN:a"}}, "with --auth_tokens_file"},
      {{.admin_identities = {"CN:a"}}, "without --tls_client_ca"},
      {{.certificates = true, .admin_identities = {"ops"}}, "--admin_identities has 'ops'; accepted: URI:..."},
  };
  for (const auto& [options, words] : rows) {
    const auto made = Authenticator::Make(options);
    ASSERT_FALSE(made.ok()) << words;
    EXPECT_EQ(made.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(made.status().message()), HasSubstr(words));
  }
  Write(std::string(OwnerTable::kMaxBytes + 1, ' '));
  EXPECT_THAT(std::string(Authenticator::Make({.tokens_file = path_}).status().message()),
              HasSubstr("has more than 1048576 bytes"));
}

}  // namespace
}  // namespace palimpsest
