#include "base/random.h"

#include <openssl/rand.h>

#include <random>

#include "base/check.h"

namespace palimpsest {

uint64_t RandomNumber() {
  thread_local std::mt19937_64 generator{(uint64_t{std::random_device{}()} << 32) | std::random_device{}()};
  return generator();
}

std::string SecretBytes(int64_t count) {
  std::string bytes(static_cast<size_t>(count), '\0');
  PALIMPSEST_CHECK(RAND_bytes(reinterpret_cast<unsigned char*>(bytes.data()), static_cast<int>(bytes.size())) == 1);
  return bytes;
}

}  // namespace palimpsest
