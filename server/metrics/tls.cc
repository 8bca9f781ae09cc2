#include "server/metrics/tls.h"

#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/x509.h>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace palimpsest {
namespace {

struct Free {
  void operator()(BIO* bio) const { BIO_free(bio); }
  void operator()(X509* certificate) const { X509_free(certificate); }
  void operator()(EVP_PKEY* key) const { EVP_PKEY_free(key); }
};
using Certificate = std::unique_ptr<X509, Free>;
using Bio = std::unique_ptr<BIO, Free>;

Bio Open(const std::string& pem) { return Bio(BIO_new_mem_buf(pem.data(), static_cast<int>(pem.size()))); }

// Not a question on a terminal, which is what the library does by itself for a key with a password.
int NoPassword(char*, int, int, void*) { return -1; }

// The next certificate of the text; null: there is none, or it is damaged.
Certificate Next(const Bio& bio) {
  Certificate certificate(PEM_read_bio_X509(bio.get(), nullptr, NoPassword, nullptr));
  if (certificate == nullptr) ERR_clear_error();
  return certificate;
}

absl::Status Invalid(absl::string_view what) {
  char reason[256];
  ERR_error_string_n(ERR_get_error(), reason, sizeof reason);
  ERR_clear_error();
  return absl::InvalidArgumentError(absl::StrCat(what, " (", reason, ")"));
}

absl::Status UseCertificates(SSL_CTX* context, const std::string& pem) {
  const Bio bio = Open(pem);
  const Certificate own = Next(bio);
  if (own == nullptr) return absl::InvalidArgumentError("--tls_cert holds no certificate in PEM form");
  if (SSL_CTX_use_certificate(context, own.get()) != 1)
    return Invalid("--tls_cert holds a certificate that cannot be used");
  for (Certificate more = Next(bio); more != nullptr; more = Next(bio)) {
    if (SSL_CTX_add1_chain_cert(context, more.get()) != 1)
      return Invalid("--tls_cert holds a chain that cannot be used");
  }
  return absl::OkStatus();
}

absl::Status UseKey(SSL_CTX* context, const std::string& pem) {
  const Bio bio = Open(pem);
  const std::unique_ptr<EVP_PKEY, Free> key(PEM_read_bio_PrivateKey(bio.get(), nullptr, NoPassword, nullptr));
  if (key == nullptr) return Invalid("--tls_key holds no key in PEM form, or one with a password");
  if (SSL_CTX_use_PrivateKey(context, key.get()) != 1)
    return Invalid("--tls_key is not the key of the certificate in --tls_cert");
  return absl::OkStatus();
}

absl::Status RequireClients(SSL_CTX* context, const std::string& pem) {
  const Bio bio = Open(pem);
  int found = 0;
  for (Certificate authority = Next(bio); authority != nullptr; authority = Next(bio), ++found) {
    // The store keeps one of two that are equal, which is no error.
    X509_STORE_add_cert(SSL_CTX_get_cert_store(context), authority.get());
    if (SSL_CTX_add_client_CA(context, authority.get()) != 1)
      return Invalid("--tls_client_ca holds a certificate that cannot be used");
  }
  ERR_clear_error();
  if (found == 0) return absl::InvalidArgumentError("--tls_client_ca holds no certificate in PEM form");
  SSL_CTX_set_verify(context, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, nullptr);
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<TlsContext> MakeTlsContext(const std::string& certificate, const std::string& key,
                                          const std::string& client_authority) {
  ERR_clear_error();
  TlsContext context(SSL_CTX_new(TLS_server_method()));
  if (context == nullptr) return Invalid("TLS cannot be set up");
  SSL_CTX_set_min_proto_version(context.get(), TLS1_2_VERSION);
  SSL_CTX_set_options(context.get(), SSL_OP_NO_RENEGOTIATION);
  SSL_CTX_set_mode(context.get(), SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
  // Nobody resumes a connection that asks once in a while.
  SSL_CTX_set_session_cache_mode(context.get(), SSL_SESS_CACHE_OFF);
  SSL_CTX_set_num_tickets(context.get(), 0);
  if (absl::Status status = UseCertificates(context.get(), certificate); !status.ok()) return status;
  if (absl::Status status = UseKey(context.get(), key); !status.ok()) return status;
  if (!client_authority.empty()) {
    if (absl::Status status = RequireClients(context.get(), client_authority); !status.ok()) return status;
  }
  return context;
}

}  // namespace palimpsest
