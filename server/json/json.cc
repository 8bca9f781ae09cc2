#include "server/json/json.h"

#include <string>
#include <unordered_set>
#include <utility>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "base/quote.h"

namespace palimpsest {
namespace {

using nlohmann::json;

// Looks at the text once without building anything: is it JSON, not too deep, and no key given twice in an object? (The
// library's parser keeps the last of equal keys without a word, and two readers of one file must not see two models.
// Its callbacks would tell, but make it search a whole object after each of its members.)
class Watch : public json::json_sax_t {
 public:
  explicit Watch(int32_t max_depth) : max_depth_(max_depth) {}

  const std::string& problem() const { return problem_; }

  bool null() override { return true; }
  bool boolean(bool) override { return true; }
  bool number_integer(number_integer_t) override { return true; }
  bool number_unsigned(number_unsigned_t) override { return true; }
  bool number_float(number_float_t, const string_t&) override { return true; }
  bool string(string_t&) override { return true; }
  bool binary(binary_t&) override { return true; }
  bool start_object(std::size_t) override { return Open(); }
  bool start_array(std::size_t) override { return Open(); }
  bool end_object() override { return Close(); }
  bool end_array() override { return Close(); }
  bool key(string_t& key) override {
    if (keys_.back().insert(key).second) return true;
    return Fail(absl::StrCat("names the key ", Quoted(key), " twice"));
  }
  bool parse_error(std::size_t, const std::string&, const json::exception& error) override {
    // The library puts its own tag first and quotes the text around the place, which may be long and is not ours.
    const std::string_view what = error.what();
    const size_t tag = what.find("] ");
    const std::string_view reason = tag == std::string_view::npos ? what : what.substr(tag + 2);
    return Fail(absl::StrCat("not valid JSON: ", absl::CHexEscape(std::string(reason.substr(0, 160)))));
  }

 private:
  bool Open() {
    keys_.emplace_back();
    if (static_cast<int32_t>(keys_.size()) <= max_depth_) return true;
    return Fail(absl::StrCat("nested deeper than ", max_depth_, ", which is not read"));
  }
  bool Close() {
    keys_.pop_back();
    return true;
  }
  bool Fail(std::string problem) {
    problem_ = std::move(problem);
    return false;  // stop reading
  }

  const int32_t max_depth_;
  std::vector<std::unordered_set<std::string>> keys_;  // of each open object; empty for a list
  std::string problem_;
};

}  // namespace

absl::StatusOr<json> ParseJsonObject(std::string_view text, const std::string& where, const JsonLimits& limits) {
  if (static_cast<int64_t>(text.size()) > limits.max_bytes) {
    return absl::InvalidArgumentError(
        absl::StrCat(where, ": has ", text.size(), " bytes, at most ", limits.max_bytes, " are read"));
  }
  Watch watch(limits.max_depth);
  if (!json::sax_parse(text, &watch)) return absl::InvalidArgumentError(absl::StrCat(where, ": ", watch.problem()));
  json value = json::parse(text, /*cb=*/nullptr, /*allow_exceptions=*/false);
  if (!value.is_object()) {
    return absl::InvalidArgumentError(absl::StrCat(where, ": expected an object, got ", value.type_name()));
  }
  return value;
}

}  // namespace palimpsest
