// Which words of a fixed set does a text begin with?
#pragma once

#include <algorithm>
#include <cstdint>
#include <string_view>
#include <utility>
#include <vector>

namespace palimpsest {

// Keeps views: the words must outlive it. Read-only after construction; threads may share it.
class PrefixIndex {
 public:
  PrefixIndex() = default;
  // No word is empty.
  explicit PrefixIndex(std::vector<std::pair<std::string_view, int32_t>> words) : words_(std::move(words)) {
    std::sort(words_.begin(), words_.end());
  }

  // Calls visit(length, id) for each word that `text` begins with, shortest first.
  template <typename Visit>
  void ForEachPrefix(std::string_view text, Visit visit) const {
    // The words that agree with the text so far are a range, which each byte narrows. The one that ends there, if any,
    // sorts first in it.
    auto begin = words_.begin();
    auto end = words_.end();
    for (size_t length = 0; begin != end; ++length) {
      if (begin->first.size() == length) {
        visit(length, begin->second);
        ++begin;
      }
      if (length == text.size()) return;
      const auto byte = static_cast<uint8_t>(text[length]);
      const auto byte_of = [length](const auto& word) { return static_cast<uint8_t>(word.first[length]); };
      begin = std::partition_point(begin, end, [&](const auto& word) { return byte_of(word) < byte; });
      end = std::partition_point(begin, end, [&](const auto& word) { return byte_of(word) == byte; });
    }
  }

  // Length of the longest word that `text` begins with; 0: none.
  size_t LongestPrefix(std::string_view text) const {
    size_t longest = 0;
    ForEachPrefix(text, [&longest](size_t length, int32_t) { longest = length; });
    return longest;
  }

 private:
  std::vector<std::pair<std::string_view, int32_t>> words_;
};

}  // namespace palimpsest
