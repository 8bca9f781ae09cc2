// What a fuzz target is: a function of any bytes that returns. A property that does not hold ends the process
// (PALIMPSEST_CHECK), as a fault that a sanitizer sees does. docs/fuzzing.md is the manual.
//
// Each target is built in one of two ways: with libFuzzer (./dev fuzz), or as a test that feeds it the files of its
// committed corpus.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace palimpsest::fuzz {

// Each target defines it. Called by one thread, any number of times.
void Run(std::string_view input);

// Takes an input apart. What is not there any more is empty, or zero.
class Input {
 public:
  explicit Input(std::string_view bytes) : rest_(bytes) {}

  bool empty() const { return rest_.empty(); }
  uint8_t Byte() {
    const std::string_view byte = Bytes(1);
    return byte.empty() ? uint8_t{0} : static_cast<uint8_t>(byte[0]);
  }
  // A length in two bytes, little endian, and as many bytes, or those that are left.
  std::string_view Counted() {
    const size_t low = Byte();
    return Bytes(low | size_t{Byte()} << 8);
  }
  // Up to the next zero byte, which is dropped: what is written in text takes no escapes.
  std::string_view Text() {
    const std::string_view text = Bytes(std::min(rest_.find('\0'), rest_.size()));
    Bytes(1);
    return text;
  }
  std::string_view Rest() { return Bytes(rest_.size()); }

 private:
  std::string_view Bytes(size_t count) {
    const std::string_view bytes = rest_.substr(0, count);
    rest_.remove_prefix(bytes.size());
    return bytes;
  }

  std::string_view rest_;
};

// `bytes`, 2^doublings times, but not longer than `max_bytes` if more than once. A message of Protocol Buffers said
// again is a message, too: so a small file of the corpus holds one of a million entries.
inline std::string Repeated(std::string_view bytes, int doublings, size_t max_bytes) {
  std::string repeated(bytes);
  for (int i = 0; i < doublings && !repeated.empty() && 2 * repeated.size() <= max_bytes; ++i) repeated += repeated;
  return repeated;
}

}  // namespace palimpsest::fuzz
