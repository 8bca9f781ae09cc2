#include "server/model/architectures/architecture.h"

#include <algorithm>
#include <iterator>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/check.h"
#include "base/quote.h"
#include "server/json/json.h"

namespace palimpsest {

extern const Architecture kDeltaNet;
extern const Architecture kGatedDeltaNet;
extern const Architecture kFwp;
extern const Architecture kGatedDeltaProduct;
extern const Architecture kGla;
extern const Architecture kKda;
extern const Architecture kLinearAttention;

namespace {

constexpr const Architecture* kArchitectures[] = {&kDeltaNet, &kGatedDeltaNet,   &kKda, &kGatedDeltaProduct,
                                                  &kGla,      &kLinearAttention, &kFwp};

// Model types that one might try, and why they cannot run.
struct Refused {
  const char* model_type;
  const char* reason;
};
constexpr const char* kUnbounded =
    "it mixes in softmax attention over the whole context, so its state has no fixed size";
constexpr Refused kRefused[] = {
    {"qwen3_next", kUnbounded},
    {"qwen3_5", kUnbounded},
    {"qwen3_5_text", kUnbounded},
    {"qwen3_5_moe", kUnbounded},
    {"qwen3_5_moe_text", kUnbounded},
    {"kimi_linear", kUnbounded},
    {"olmo_hybrid", kUnbounded},
    {"rwkv7", "its update is diagonal plus low rank with token shift, which the mixer does not have yet"},
    {"comba", "it corrects its queries with its keys, which the mixer does not do"},
    {"gsa", "it has two chained memories with slots of their own, which the mixer does not have"},
    {"hgrn2", "its gates take the place of its keys, which the mixer does not do"},
    {"mamba2", "it is a state-space model: its projections, convolution and skip connections are not the mixer's"},
    {"retnet", "its decays are fixed for each head and its keys are rotated, which the mixer does not do"},
};

}  // namespace

std::string WithIndex(const TensorName& name, size_t index) {
  constexpr std::string_view kIndex = "{}";
  std::string text = name.pattern;
  if (const size_t at = text.find(kIndex); at != std::string::npos) {
    text.replace(at, kIndex.size(), std::to_string(index));
  }
  return text;
}

std::vector<TensorName> Architecture::NamesOf(Role role) const {
  std::vector<TensorName> of_role;
  for (const auto some : {names, shared_names}) {
    std::ranges::copy_if(some, std::back_inserter(of_role), [&](const TensorName& name) { return name.role == role; });
    if (!of_role.empty()) break;
  }
  PALIMPSEST_CHECK(!of_role.empty());
  return of_role;
}

std::string Architecture::NameOf(Role role, size_t index) const { return WithIndex(NamesOf(role).front(), index); }

const Architecture* FindArchitecture(std::string_view model_type) {
  for (const Architecture* architecture : kArchitectures) {
    if (model_type == architecture->model_type) return architecture;
  }
  return nullptr;
}

absl::StatusOr<const Architecture*> ArchitectureOf(const nlohmann::json& config) {
  std::vector<const char*> supported;
  for (const Architecture* architecture : kArchitectures) supported.push_back(architecture->model_type);
  const std::string expected = absl::StrCat("; palimpsest runs ", absl::StrJoin(supported, ", "));
  const auto found = config.find("model_type");
  if (found == config.end() || !found->is_string()) {
    return absl::InvalidArgumentError(absl::StrCat("config.json: 'model_type' is missing or not a string", expected));
  }
  const auto& name = found->get_ref<const std::string&>();
  if (const Architecture* architecture = FindArchitecture(name); architecture != nullptr) return architecture;
  for (const Refused& refused : kRefused) {
    if (name == refused.model_type) {
      return absl::InvalidArgumentError(
          absl::StrCat("config.json: model_type '", name, "' is not supported: ", refused.reason, expected));
    }
  }
  return absl::InvalidArgumentError(absl::StrCat("config.json: model_type ", Quoted(name), " is not known", expected));
}

}  // namespace palimpsest
