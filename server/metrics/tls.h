// TLS from PEM texts: for the metrics page, and to know what is wrong with the texts, which gRPC does not say.
#pragma once

#include <openssl/ssl.h>

#include <memory>
#include <string>

#include "absl/status/statusor.h"

namespace palimpsest {

struct FreeTlsContext {
  void operator()(SSL_CTX* context) const { SSL_CTX_free(context); }
};
using TlsContext = std::unique_ptr<SSL_CTX, FreeTlsContext>;

// A server's: TLS 1.2 and above. `certificate` may be followed by those that lead to its authority. With
// `client_authority`, clients must show a certificate that one in it signed. INVALID_ARGUMENT, with the name of the
// flag: a text that holds no such thing, or a key of another certificate.
absl::StatusOr<TlsContext> MakeTlsContext(const std::string& certificate, const std::string& key,
                                          const std::string& client_authority);

}  // namespace palimpsest
