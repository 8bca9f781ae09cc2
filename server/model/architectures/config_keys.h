// Reads the keys of a config.json one by one, remembers which were read and keeps the first error.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"

namespace palimpsest {

// Every reader returns a value within its bounds whatever the file says; Finish() tells whether to believe it. Not
// thread-safe.
class ConfigKeys {
 public:
  // `object` must outlive this and be an object; `where` names the file in messages.
  ConfigKeys(const nlohmann::json& object, std::string where);

  // What the key says; null if it is missing.
  const nlohmann::json* Get(const char* key) { return Find(key); }
  // A missing key means the fallback.
  int32_t Int(const char* key, int32_t fallback, int32_t min, int32_t max);
  double Real(const char* key, double fallback, double min, double max);
  bool Bool(const char* key, bool fallback);
  std::string String(const char* key, const char* fallback);
  // A missing key and null mean nothing.
  std::optional<int32_t> OptionalInt(const char* key, int32_t min, int32_t max);
  std::optional<double> OptionalReal(const char* key, double min, double max);
  // One id or a list of ids in [0, vocabulary); null means none, a missing key means the fallback if it is in range.
  std::vector<int32_t> TokenIds(const char* key, int32_t fallback, int32_t vocabulary);
  // A missing key means an empty list.
  std::vector<bool> Bools(const char* key);

  // One of a few words.
  template <typename T>
  struct Word {
    const char* text;
    T value;
  };
  template <typename T>
  T OneOf(const char* key, const char* fallback, std::span<const Word<T>> words) {
    const std::string given = String(key, fallback);
    std::vector<const char*> expected;
    for (const Word<T>& word : words) {
      if (given == word.text) return word.value;
      expected.push_back(word.text);
    }
    FailWord(key, given, expected);
    return words[0].value;
  }

  // A missing key and null mean nothing.
  template <typename T>
  std::optional<T> OptionalOneOf(const char* key, std::span<const Word<T>> words) {
    const nlohmann::json* const value = Get(key);
    if (value == nullptr || value->is_null()) return std::nullopt;
    return OneOf(key, "", words);
  }

  // The key may be there with any value: it does not change the model.
  void Accept(const char* key) { read_.insert(key); }
  // The same of every key that begins so.
  void AcceptPrefix(std::string_view prefix);
  // The key may be there only as null or as `value`; `reason` says why.
  void AcceptOnly(const char* key, const nlohmann::json& value, const char* reason);

  // Keeps the message ("<where>: <message>") if it is the first.
  void Fail(const std::string& message);

  // The first error, or one that names the keys that nobody has read.
  absl::Status Finish() const;

 private:
  const nlohmann::json* Find(const char* key);
  void FailWord(const char* key, const std::string& given, const std::vector<const char*>& expected);

  const nlohmann::json& object_;
  const std::string where_;
  std::set<std::string, std::less<>> read_;
  absl::Status status_;
};

}  // namespace palimpsest
