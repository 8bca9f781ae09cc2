#include "base/sha256.h"

#include <openssl/evp.h>

#include "base/check.h"

namespace palimpsest {

struct Sha256::Context {
  struct Free {
    void operator()(EVP_MD_CTX* context) const { EVP_MD_CTX_free(context); }
  };
  std::unique_ptr<EVP_MD_CTX, Free> evp{EVP_MD_CTX_new()};
};

Sha256::Sha256() : context_(std::make_unique<Context>()) {
  PALIMPSEST_CHECK(context_->evp != nullptr);
  PALIMPSEST_CHECK(EVP_DigestInit_ex(context_->evp.get(), EVP_sha256(), nullptr) == 1);
}
Sha256::Sha256(Sha256&&) noexcept = default;
Sha256& Sha256::operator=(Sha256&&) noexcept = default;
Sha256::~Sha256() = default;

void Sha256::Add(const void* data, int64_t size) {
  PALIMPSEST_CHECK(EVP_DigestUpdate(context_->evp.get(), data, static_cast<size_t>(size)) == 1);
}

Sha256Digest Sha256::Finish() {
  Sha256Digest digest;
  unsigned int size = 0;
  PALIMPSEST_CHECK(EVP_DigestFinal_ex(context_->evp.get(), digest.data(), &size) == 1 && size == digest.size());
  return digest;
}

Sha256Digest Sha256Of(std::string_view bytes) {
  Sha256 hash;
  hash.Add(bytes);
  return hash.Finish();
}

std::string BytesOf(const Sha256Digest& digest) {
  return std::string(reinterpret_cast<const char*>(digest.data()), digest.size());
}

}  // namespace palimpsest
