#include "server/model/loading/fingerprint.h"

#include <openssl/evp.h>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "base/check.h"

namespace palimpsest {

Sha256 Sha256Of(std::string_view bytes) {
  Sha256 digest;
  unsigned int size = 0;
  PALIMPSEST_CHECK(EVP_Digest(bytes.data(), bytes.size(), digest.data(), &size, EVP_sha256(), nullptr) == 1);
  PALIMPSEST_CHECK(size == digest.size());
  return digest;
}

std::string Fingerprint(const std::string& canonical_config, const std::map<std::string, const TensorView*>& tensors,
                        const std::map<std::string, Sha256>& digests) {
  const auto as_string = [](const Sha256& digest) {
    return std::string(reinterpret_cast<const char*>(digest.data()), digest.size());
  };
  std::string text = canonical_config + "\n";
  for (const auto& [name, tensor] : tensors) {
    absl::StrAppend(&text, name, " ", std::string(NameOf(tensor->dtype)), " ", ShapeString(tensor->shape), "\n",
                    as_string(digests.at(name)));
  }
  return absl::BytesToHexString(as_string(Sha256Of(text)));
}

}  // namespace palimpsest
