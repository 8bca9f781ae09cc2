#include "clients/cpp/cli/http.h"

#include <curl/curl.h>

#include <cstdlib>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "clients/cpp/target.h"

namespace palimpsest::cli {
namespace {

constexpr size_t kMaxBytes = 16 << 20;

size_t Append(char* bytes, size_t size, size_t count, void* body) {
  auto& text = *static_cast<std::string*>(body);
  if (text.size() + size * count > kMaxBytes) return 0;  // curl gives the transfer up
  text.append(bytes, size * count);
  return size * count;
}

// A part of a url; empty if it has none, or is no url.
std::string Part(const std::string& url, CURLUPart part) {
  const std::unique_ptr<CURLU, decltype(&curl_url_cleanup)> parsed(curl_url(), &curl_url_cleanup);
  char* text = nullptr;
  if (curl_url_set(parsed.get(), CURLUPART_URL, url.c_str(), CURLU_GUESS_SCHEME) != CURLUE_OK ||
      curl_url_get(parsed.get(), part, &text, 0) != CURLUE_OK) {
    return "";
  }
  const std::unique_ptr<char, decltype(&curl_free)> owned(text, &curl_free);
  return text;
}

// The environment's proxy that curl takes for `scheme`, as a line to add to an error; empty: none.
std::string ProxyLine(const std::string& scheme) {
  for (const std::string& variable :
       {absl::StrCat(scheme, "_proxy"), std::string(scheme == "https" ? "HTTPS_PROXY" : ""), std::string("all_proxy"),
        std::string("ALL_PROXY")}) {
    const char* value = variable.empty() ? nullptr : std::getenv(variable.c_str());
    if (value != nullptr && *value != '\0') {
      return absl::StrCat("\n  the environment has a proxy, ", client::ProxyAddress(value), " of ", variable,
                          "; no_proxy says what it is not for");
    }
  }
  return "";
}

}  // namespace

absl::StatusOr<std::string> HttpGet(const std::string& url, absl::Duration timeout,
                                    const HttpCredentials& credentials) {
  static const CURLcode initialised = curl_global_init(CURL_GLOBAL_DEFAULT);
  const std::unique_ptr<CURL, decltype(&curl_easy_cleanup)> curl(curl_easy_init(), &curl_easy_cleanup);
  if (initialised != CURLE_OK || curl == nullptr) return absl::InternalError("libcurl does not start");
  const std::string scheme = Part(url, CURLUPART_SCHEME);
  std::string host = Part(url, CURLUPART_HOST);
  if (host.empty()) return absl::InvalidArgumentError(absl::StrCat("\"", url, "\" is no http or https url"));
  if (host.front() == '[') host = host.substr(1, host.size() - 2);
  const bool local = client::IsLoopbackHost(host);
  if (!credentials.token.empty() && scheme != "https" && !local && !credentials.allow_insecure_token) {
    return absl::InvalidArgumentError(
        absl::StrCat(url, " is on another machine and not encrypted: anybody on the way could read the token. Give an ",
                     "https url, or --allow_insecure_token"));
  }
  std::string body;
  char error[CURL_ERROR_SIZE] = "";
  std::unique_ptr<curl_slist, decltype(&curl_slist_free_all)> headers(nullptr, &curl_slist_free_all);
  curl_easy_setopt(curl.get(), CURLOPT_URL, url.c_str());
  curl_easy_setopt(curl.get(), CURLOPT_PROTOCOLS_STR, "http,https");
  curl_easy_setopt(curl.get(), CURLOPT_NOSIGNAL, 1L);
  curl_easy_setopt(curl.get(), CURLOPT_TIMEOUT_MS, static_cast<long>(absl::ToInt64Milliseconds(timeout)));
  curl_easy_setopt(curl.get(), CURLOPT_WRITEFUNCTION, &Append);
  curl_easy_setopt(curl.get(), CURLOPT_WRITEDATA, &body);
  curl_easy_setopt(curl.get(), CURLOPT_ERRORBUFFER, error);
  // A proxy is of no use on the way to this machine, and seldom lets anybody through to it.
  if (local) curl_easy_setopt(curl.get(), CURLOPT_NOPROXY, "*");
  const std::pair<CURLoption, const std::string*> files[] = {{CURLOPT_CAINFO, &credentials.ca_file},
                                                             {CURLOPT_SSLCERT, &credentials.certificate_file},
                                                             {CURLOPT_SSLKEY, &credentials.key_file}};
  for (const auto& [option, path] : files) {
    if (!path->empty()) curl_easy_setopt(curl.get(), option, path->c_str());
  }
  if (!credentials.token.empty()) {
    headers.reset(curl_slist_append(nullptr, absl::StrCat("Authorization: Bearer ", credentials.token).c_str()));
    curl_easy_setopt(curl.get(), CURLOPT_HTTPHEADER, headers.get());
  }
  const CURLcode result = curl_easy_perform(curl.get());
  if (result != CURLE_OK) {
    return absl::UnavailableError(
        absl::StrCat(url, ": ", *error != '\0' ? error : curl_easy_strerror(result), local ? "" : ProxyLine(scheme)));
  }
  long code = 0;
  curl_easy_getinfo(curl.get(), CURLINFO_RESPONSE_CODE, &code);
  if (code == 200) return body;
  const std::string message = absl::StrCat(url, ": HTTP status ", code);
  if (code == 401) return absl::UnauthenticatedError(message);
  if (code == 403) return absl::PermissionDeniedError(message);
  return absl::UnknownError(message);
}

}  // namespace palimpsest::cli
