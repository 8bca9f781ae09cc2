#include "server/model/loading/place.h"

#include <algorithm>
#include <type_traits>
#include <utility>
#include <variant>

#include "absl/strings/str_cat.h"
#include "base/round_up.h"
#include "kernels/common/simd.h"

namespace palimpsest {

absl::Status LayOutSlots(const std::string& folder, const ModelOptions& options, ModelWeights& weights) {
  constexpr int32_t kMostInterval = 64;
  constexpr int64_t kAlignment = 64;
  if (options.write_interval < 1 || options.write_interval > kMostInterval) {
    return absl::InvalidArgumentError(
        absl::StrCat(folder, ": write_interval is ", options.write_interval, ", expected 1 to ", kMostInterval));
  }
  if (options.state_dtype != DType::kF32 && options.state_dtype != DType::kBF16) {
    return absl::InvalidArgumentError(
        absl::StrCat(folder, ": state_dtype is ", std::string(NameOf(options.state_dtype)), ", expected f32 or bf16"));
  }
  SlotLayout& slots = weights.slots;
  slots.bytes = RoundUp(weights.layout.bytes(), kAlignment);
  if (weights.device == nullptr || options.write_interval == 1) return absl::OkStatus();
  const int64_t deferred = slots.bytes;
  int64_t end = deferred + kAlignment;
  const auto deferred_bytes = [&](const Layer& layer) {
    const auto* const mixer = std::get_if<FastWeightLayer>(&layer.mixer);
    return mixer == nullptr ? 0 : DeferredBytes(mixer->config, options.write_interval);
  };
  // All layers or none: they defer to the same step.
  if (!std::ranges::all_of(weights.layers, [&](const Layer& layer) { return deferred_bytes(layer) > 0; })) {
    return absl::OkStatus();
  }
  for (Layer& layer : weights.layers) {
    std::get<FastWeightLayer>(layer.mixer).state.deferred = {.offset = end};
    end += RoundUp(deferred_bytes(layer), kAlignment);
  }
  slots = {.bytes = end, .write_interval = options.write_interval, .deferred = deferred};
  return absl::OkStatus();
}

absl::Status MoveToDevice(const std::string& folder, ModelWeights& weights) {
  Device& device = *weights.device;
  bool fits = true;
  const auto move = [&](auto& array, int64_t bytes) {
    if (array.size() == 0) return;
    std::remove_reference_t<decltype(array)> moved(array.size(), &device);
    fits = fits && moved.data() != nullptr;
    if (!fits) return;
    device.CopyToDevice(moved.data(), array.data(), bytes);
    array = std::move(moved);
  };
  weights.VisitArrays([&]<typename Part>(Part& part) {
    if constexpr (std::is_same_v<Part, PackedLinear>) {
      fits = fits && (part.out() == 0 || part.data() != nullptr);
    } else if constexpr (std::is_same_v<Part, AlignedBytes>) {
      move(part, part.size());
    } else {
      move(part, part.size() * int64_t{sizeof(float)});
    }
  });
  if (fits) return device.Synchronize();
  return absl::ResourceExhaustedError(absl::StrCat(folder, ": the weights do not fit the free memory of ",
                                                   device.info().name, ", of which ", device.FreeBytes(),
                                                   " bytes are left"));
}

absl::Status FinishSizes(const std::string& folder, const ModelOptions& options, ModelWeights& weights) {
  bool any_bf16 = false;
  weights.VisitArrays([&]<typename Part>(Part& part) {
    if constexpr (std::is_same_v<Part, PackedLinear>) {
      weights.bytes += part.bytes();
      any_bf16 |= part.dtype() == DType::kBF16;
    } else if constexpr (std::is_same_v<Part, AlignedBytes>) {
      weights.bytes += part.size();
    } else {
      weights.bytes += int64_t{sizeof(float)} * part.size();
    }
  });
  weights.dtype = any_bf16 ? DType::kBF16 : DType::kF32;
  if (options.math == ModelOptions::Math::kBF16 && !any_bf16) {
    return absl::InvalidArgumentError(
        absl::StrCat(folder, ": bf16 arithmetic needs bf16 weights, these are f32 or f16; ask for auto or f32"));
  }
  const bool bf16 =
      options.math == ModelOptions::Math::kBF16 ||
      (options.math == ModelOptions::Math::kAuto && any_bf16 && (options.device != nullptr || HasNativeBF16()));
  weights.math = bf16 ? LinearMath::kBF16 : LinearMath::kF32;
  return absl::OkStatus();
}

}  // namespace palimpsest
