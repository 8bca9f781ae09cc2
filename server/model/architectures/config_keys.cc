#include "server/model/architectures/config_keys.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/quote.h"
#include "server/json/json.h"

namespace palimpsest {
namespace {

using nlohmann::json;

// A value as a message shows it.
std::string Shown(const json& value) {
  if (value.is_string()) return Quoted(value.get_ref<const std::string&>());
  if (value.is_structured()) return absl::StrCat("of type ", value.type_name());
  return value.dump();
}

}  // namespace

ConfigKeys::ConfigKeys(const json& object, std::string where) : object_(object), where_(std::move(where)) {}

const json* ConfigKeys::Find(const char* key) {
  read_.insert(key);
  const auto found = object_.find(key);
  return found == object_.end() ? nullptr : &*found;
}

void ConfigKeys::Fail(const std::string& message) {
  if (status_.ok()) status_ = absl::InvalidArgumentError(absl::StrCat(where_, ": ", message));
}

void ConfigKeys::FailWord(const char* key, const std::string& given, const std::vector<const char*>& expected) {
  Fail(absl::StrCat("'", key, "' is ", Quoted(given), ", expected '", absl::StrJoin(expected, "' or '"), "'"));
}

int32_t ConfigKeys::Int(const char* key, int32_t fallback, int32_t min, int32_t max) {
  const json* value = Find(key);
  if (value == nullptr) return fallback;
  // A double holds every integer that can be in range, and those out of range need only stay out of it. 256.0 is one.
  if (value->is_number()) {
    const double number = value->get<double>();
    if (number >= min && number <= max && number == std::trunc(number)) return static_cast<int32_t>(number);
  }
  Fail(absl::StrCat("'", key, "' is ", Shown(*value), ", expected an integer from ", min, " to ", max));
  return fallback;
}

double ConfigKeys::Real(const char* key, double fallback, double min, double max) {
  const json* value = Find(key);
  if (value == nullptr) return fallback;
  if (value->is_number()) {
    const double number = value->get<double>();
    if (number >= min && number <= max) return number;
  }
  Fail(absl::StrCat("'", key, "' is ", Shown(*value), ", expected a number from ", min, " to ", max));
  return fallback;
}

bool ConfigKeys::Bool(const char* key, bool fallback) {
  const json* value = Find(key);
  if (value == nullptr) return fallback;
  if (value->is_boolean()) return value->get<bool>();
  Fail(absl::StrCat("'", key, "' is ", Shown(*value), ", expected true or false"));
  return fallback;
}

std::string ConfigKeys::String(const char* key, const char* fallback) {
  const json* value = Find(key);
  if (value == nullptr) return fallback;
  if (value->is_string()) return value->get<std::string>();
  Fail(absl::StrCat("'", key, "' is ", Shown(*value), ", expected a string"));
  return fallback;
}

std::optional<int32_t> ConfigKeys::OptionalInt(const char* key, int32_t min, int32_t max) {
  const json* value = Find(key);
  if (value == nullptr || value->is_null()) return std::nullopt;
  return Int(key, min, min, max);
}

std::optional<double> ConfigKeys::OptionalReal(const char* key, double min, double max) {
  const json* value = Find(key);
  if (value == nullptr || value->is_null()) return std::nullopt;
  return Real(key, min, min, max);
}

std::vector<int32_t> ConfigKeys::TokenIds(const char* key, int32_t fallback, int32_t vocabulary) {
  constexpr size_t kMostIds = 1024;
  const json* value = Find(key);
  std::vector<int32_t> ids;
  if (value == nullptr) {
    if (fallback >= 0 && fallback < vocabulary) ids.push_back(fallback);
    return ids;
  }
  if (value->is_null()) return ids;
  const json list = value->is_array() ? *value : json::array({*value});
  if (list.size() > kMostIds) {
    Fail(absl::StrCat("'", key, "' lists ", list.size(), " ids, at most ", kMostIds, " are read"));
    return ids;
  }
  if (list.size() == 1 && list[0] == -1) return ids;
  for (const json& id : list) {
    const double number = id.is_number() ? id.get<double>() : -1.0;
    if (!(number >= 0 && number < vocabulary && number == std::trunc(number))) {
      Fail(absl::StrCat("'", key, "' is ", Shown(id), ", expected an id from 0 to ", vocabulary - 1, " (vocab_size is ",
                        vocabulary, "), a list of ids, or -1 or null for none"));
      return ids;
    }
    ids.push_back(static_cast<int32_t>(number));
  }
  return ids;
}

std::vector<bool> ConfigKeys::Bools(const char* key) {
  const json* value = Find(key);
  std::vector<bool> bools;
  if (value == nullptr) return bools;
  const bool list = value->is_array() && std::ranges::all_of(*value, [](const json& v) { return v.is_boolean(); });
  if (!list) {
    Fail(absl::StrCat("'", key, "' is ", Shown(*value), ", expected a list of true and false"));
    return bools;
  }
  for (const json& v : *value) bools.push_back(v.get<bool>());
  return bools;
}

void ConfigKeys::AcceptOnly(const char* key, const json& value, const char* reason) {
  const json* given = Find(key);
  if (given == nullptr || given->is_null() || *given == value) return;
  Fail(absl::StrCat("'", key, "' is ", Shown(*given), ", only ",
                    value.is_null() ? "" : absl::StrCat(value.dump(), " or "), "null is supported: ", reason));
}

void ConfigKeys::AcceptPrefix(std::string_view prefix) {
  for (const auto& [key, value] : object_.items()) {
    if (key.starts_with(prefix)) read_.insert(key);
  }
}

absl::Status ConfigKeys::Finish() const {
  if (!status_.ok()) return status_;
  constexpr size_t kMostNamed = 8;
  std::vector<std::string> unknown;
  for (const auto& [key, value] : object_.items()) {
    if (!read_.contains(key)) unknown.push_back(Quoted(key));
  }
  if (unknown.empty()) return absl::OkStatus();
  const size_t more = unknown.size() > kMostNamed ? unknown.size() - kMostNamed : 0;
  unknown.resize(unknown.size() - more);
  return absl::InvalidArgumentError(absl::StrCat(
      where_, ": unknown key", unknown.size() + more > 1 ? "s " : " ", absl::StrJoin(unknown, ", "),
      more > 0 ? absl::StrCat(" and ", more, " more") : "",
      ": palimpsest does not know what the model computes where this is set, so it would compute something else"));
}

}  // namespace palimpsest
