#include "server/model/loading/fingerprint.h"

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"

namespace palimpsest {

std::string Fingerprint(const std::string& canonical_config, const std::map<std::string, const TensorView*>& tensors,
                        const std::map<std::string, Sha256Digest>& digests) {
  std::string text = canonical_config + "\n";
  for (const auto& [name, tensor] : tensors) {
    absl::StrAppend(&text, name, " ", std::string(NameOf(tensor->dtype)), " ", ShapeString(tensor->shape), "\n",
                    BytesOf(digests.at(name)));
  }
  return absl::BytesToHexString(BytesOf(Sha256Of(text)));
}

}  // namespace palimpsest
