// SHA-256 (FIPS 180-4), of bytes that are there at once or come in pieces.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

namespace palimpsest {

using Sha256Digest = std::array<uint8_t, 32>;

// The digest of these bytes.
Sha256Digest Sha256Of(std::string_view bytes);

// The digest as the 32 characters that its bytes are.
std::string BytesOf(const Sha256Digest& digest);

// The digest of bytes that come in pieces. Not thread-safe.
class Sha256 {
 public:
  Sha256();
  Sha256(Sha256&&) noexcept;
  Sha256& operator=(Sha256&&) noexcept;
  ~Sha256();

  void Add(const void* data, int64_t size);
  void Add(std::string_view bytes) { Add(bytes.data(), static_cast<int64_t>(bytes.size())); }
  // Call once, last.
  Sha256Digest Finish();

 private:
  struct Context;
  std::unique_ptr<Context> context_;
};

}  // namespace palimpsest
