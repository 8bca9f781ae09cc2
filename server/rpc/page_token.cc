#include "server/rpc/page_token.h"

#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/quote.h"
#include "base/random.h"
#include "server/errors/errors.h"

namespace palimpsest {
namespace {

constexpr size_t kSealBytes = 12;

}  // namespace

PageTokens::PageTokens() : key_(SecretBytes(32)) {}

std::string PageTokens::Seal(absl::string_view list, absl::string_view last) const {
  const std::string text = absl::StrCat(list, "/", last);
  unsigned char mac[EVP_MAX_MD_SIZE];
  unsigned int size = 0;
  PALIMPSEST_CHECK(HMAC(EVP_sha256(), key_.data(), static_cast<int>(key_.size()),
                        reinterpret_cast<const unsigned char*>(text.data()), text.size(), mac, &size) != nullptr);
  return std::string(reinterpret_cast<const char*>(mac), kSealBytes);
}

std::string PageTokens::Make(absl::string_view list, absl::string_view last) const {
  return absl::WebSafeBase64Escape(absl::StrCat(Seal(list, last), last));
}

absl::StatusOr<std::string> PageTokens::Read(absl::string_view list, const std::string& token) const {
  if (token.empty()) return std::string();
  std::string raw;
  if (token.size() <= 256 && absl::WebSafeBase64Unescape(token, &raw) && raw.size() > kSealBytes) {
    const std::string last = raw.substr(kSealBytes);
    if (CRYPTO_memcmp(Seal(list, last).data(), raw.data(), kSealBytes) == 0) return last;
  }
  return FieldViolation("page_token",
                        absl::StrCat("is ", DoubleQuoted(token), ", which this server did not give for this ",
                                     "list; accepted: next_page_token of an earlier answer, or nothing"));
}

}  // namespace palimpsest
