#include "server/model/checkpoint/tensor_names.h"

#include <algorithm>
#include <string>
#include <string_view>
#include <utility>

namespace palimpsest {
namespace {

constexpr std::string_view kModel = "model.", kHead = "lm_head.";
constexpr std::string_view kEmbeddings = "model.embeddings.weight", kHeadWeight = "lm_head.weight";

bool AllBegin(const TensorMap& tensors, std::string_view prefix) {
  return !tensors.empty() && std::ranges::all_of(tensors, [&](const auto& t) { return t.first.starts_with(prefix); });
}
bool AnyBegins(const TensorMap& tensors, std::string_view prefix) {
  return std::ranges::any_of(tensors, [&](const auto& t) { return t.first.starts_with(prefix); });
}

// rename(name) of every tensor.
template <typename Rename>
TensorMap Renamed(const TensorMap& tensors, Rename rename) {
  TensorMap renamed;
  for (const auto& [name, tensor] : tensors) renamed.emplace(rename(name), tensor);
  return renamed;
}

TensorMap WithoutWrappers(TensorMap tensors) {
  const auto strip = [&](size_t length) {
    tensors = Renamed(tensors, [&](const std::string& name) { return name.substr(length); });
  };
  for (bool found = true; found;) {
    found = false;
    for (const std::string_view wrapper : {"module.", "_orig_mod."}) {
      if (!AllBegin(tensors, wrapper)) continue;
      strip(wrapper.size());
      found = true;
    }
  }
  // "model.model.layers" and, beside it, "model.lm_head".
  if (AllBegin(tensors, kModel) && AnyBegins(tensors, "model.model.")) strip(kModel.size());
  if (AnyBegins(tensors, kModel)) return tensors;
  return Renamed(tensors,
                 [](const std::string& name) { return name.starts_with(kHead) ? name : std::string(kModel) + name; });
}

// Moves the tensor, if it is there and its place is not taken.
void Rename(TensorMap& tensors, std::string_view from, std::string_view to) {
  const auto found = tensors.find(from);
  if (found == tensors.end() || tensors.contains(to)) return;
  auto node = tensors.extract(found);
  node.key() = std::string(to);
  tensors.insert(std::move(node));
}

}  // namespace

TensorMap WithKnownNames(const TensorMap& tensors, bool tied_embeddings) {
  TensorMap known = WithoutWrappers(tensors);
  Rename(known, "model.embed_tokens.weight", kEmbeddings);
  if (tied_embeddings) Rename(known, kHeadWeight, kEmbeddings);
  std::erase_if(known, [](const auto& t) {
    return t.first.ends_with(".rotary_emb.inv_freq") || t.first.ends_with(".rotary.inv_freq");
  });
  for (auto& [name, tensor] : known) {
    if (name.ends_with("_conv1d.weight") && tensor.shape.size() == 2) tensor.shape.insert(tensor.shape.begin() + 1, 1);
  }
  return known;
}

}  // namespace palimpsest
