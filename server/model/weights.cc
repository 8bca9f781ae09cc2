#include "server/model/weights.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <functional>
#include <optional>
#include <span>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/common/check.h"
#include "kernels/common/thread_pool.h"
#include "server/model/checkpoint/safetensors.h"
#include "server/model/checkpoint/tensor_table.h"
#include "server/model/fingerprint.h"

namespace palimpsest {
namespace {

constexpr int kMaxLoadThreads = 16;

// One layer's tensors as the file has them. Null where the model has none.
struct LayerTensors {
  const TensorView* attn_norm = nullptr;
  std::vector<const TensorView*> projections;  // q, k, v, gate, b, a
  std::vector<const TensorView*> convs;        // q, k, v, each [channels, 1, W]
  std::vector<const TensorView*> conv_biases;  // q, k, v
  const TensorView* a_log = nullptr;
  const TensorView* dt_bias = nullptr;
  const TensorView* o_norm = nullptr;
  const TensorView* o_proj = nullptr;
  const TensorView* mlp_norm = nullptr;
  std::vector<const TensorView*> gate_up;  // gate, up; or one that holds both
  const TensorView* down = nullptr;
};

struct CheckpointTensors {
  const TensorView* embeddings = nullptr;
  std::vector<LayerTensors> layers;
  const TensorView* norm = nullptr;
  const TensorView* lm_head = nullptr;  // null when tied
};

bool HasShape(const TensorMap& tensors, const std::string& name, const std::vector<int64_t>& shape) {
  const auto found = tensors.find(name);
  return found != tensors.end() && found->second.shape == shape;
}

// Where a layer's norms are. Files of June 2024 to February 2025 keep the norm before the mixer as attn.norm and the
// one before the MLP as mlp.norm; older ones call the norm of the mixer's output attn.norm. The two do not occur
// together.
struct NormNames {
  std::string attn, mlp, output;
};
NormNames FindNorms(const TensorTable& table, const std::string& layer) {
  NormNames names{layer + "attn_norm.weight", layer + "mlp_norm.weight", layer + "attn.o_norm.weight"};
  const std::string shared = layer + "attn.norm.weight";
  if (table.Has(shared) && !table.Has(names.attn)) names.attn = shared;
  if (table.Has(shared) && !table.Has(names.output) && names.attn != shared) names.output = shared;
  if (table.Has(layer + "mlp.norm.weight") && !table.Has(names.mlp)) names.mlp = layer + "mlp.norm.weight";
  return names;
}

LayerTensors TakeLayer(TensorTable& table, const TensorMap& tensors, const ModelConfig& config, int32_t index) {
  const MixerConfig& mixer = config.mixer;
  const int64_t d = config.hidden, inner = config.mlp_inner, value_heads = mixer.shape.value_heads;
  const int64_t keys = mixer.key_width(), values = mixer.value_width();
  const std::string layer = absl::StrCat("model.layers.", index, "."), attn = layer + "attn.", mlp = layer + "mlp.";
  const bool gated_delta = mixer.rule == UpdateRule::kGatedDelta;
  const NormNames norms = FindNorms(table, layer);

  LayerTensors taken;
  taken.attn_norm = table.Take(norms.attn, {d});
  taken.projections = {table.Take(attn + "q_proj.weight", {keys, d}), table.Take(attn + "k_proj.weight", {keys, d}),
                       table.Take(attn + "v_proj.weight", {values, d})};
  if (mixer.output_gate) taken.projections.push_back(table.Take(attn + "g_proj.weight", {values, d}));
  if (mixer.learned_beta) taken.projections.push_back(table.Take(attn + "b_proj.weight", {value_heads, d}));
  if (gated_delta) {
    taken.projections.push_back(table.Take(attn + "a_proj.weight", {value_heads, d}));
    taken.a_log = table.Take(attn + "A_log", {value_heads});
    taken.dt_bias = table.Take(attn + "dt_bias", {value_heads});
    table.Ignore(attn + "D");  // written by early versions, read by none
  }
  if (mixer.conv_width > 0) {
    const std::pair<const char*, int64_t> convs[] = {{"q_conv1d", keys}, {"k_conv1d", keys}, {"v_conv1d", values}};
    for (const auto& [name, channels] : convs) {
      taken.convs.push_back(table.Take(absl::StrCat(attn, name, ".weight"), {channels, 1, mixer.conv_width}));
      if (mixer.conv_bias) taken.conv_biases.push_back(table.Take(absl::StrCat(attn, name, ".bias"), {channels}));
    }
  }
  taken.o_norm = table.Take(norms.output, {mixer.shape.value_dim});
  taken.o_proj = table.Take(attn + "o_proj.weight", {d, values});
  taken.mlp_norm = table.Take(norms.mlp, {d});
  // Before February 2025: one matrix, gate rows first.
  if (!table.Has(mlp + "up_proj.weight") && HasShape(tensors, mlp + "gate_proj.weight", {2 * inner, d})) {
    taken.gate_up = {table.Take(mlp + "gate_proj.weight", {2 * inner, d})};
  } else {
    taken.gate_up = {table.Take(mlp + "gate_proj.weight", {inner, d}), table.Take(mlp + "up_proj.weight", {inner, d})};
  }
  taken.down = table.Take(mlp + "down_proj.weight", {d, inner});
  return taken;
}

// All tensors of the model, or what is wrong with them.
absl::StatusOr<CheckpointTensors> TakeTensors(TensorTable& table, const TensorMap& tensors, const ModelConfig& config) {
  const std::vector<int64_t> table_shape = {config.vocabulary, config.hidden};
  CheckpointTensors taken;
  taken.embeddings = table.Take("model.embeddings.weight", table_shape);
  for (int32_t i = 0; i < config.layers; ++i) taken.layers.push_back(TakeLayer(table, tensors, config, i));
  taken.norm = table.Take("model.norm.weight", {config.hidden});
  if (!config.tied_embeddings) {
    taken.lm_head = table.Take("lm_head.weight", table_shape);
  } else if (const auto copy = tensors.find("lm_head.weight"); copy != tensors.end() && taken.embeddings != nullptr) {
    // Some writers store the tied matrix twice. Another matrix would be a model that contradicts its config.
    table.Ignore("lm_head.weight");
    if (copy->second.shape != table_shape || copy->second.dtype != taken.embeddings->dtype ||
        std::memcmp(copy->second.data, taken.embeddings->data, taken.embeddings->bytes()) != 0) {
      table.Fail(
          "config.json says tie_word_embeddings, but 'lm_head.weight' is there and differs from "
          "'model.embeddings.weight'");
    }
  }
  if (absl::Status status = table.Finish(); !status.ok()) return status;
  return taken;
}

// Runs the tasks on all threads; any thread takes the next one.
void RunTasks(ThreadPool& pool, std::span<const std::function<void()>> tasks) {
  std::atomic<size_t> next{0};
  pool.Run([&](int) {
    for (size_t i = next.fetch_add(1); i < tasks.size(); i = next.fetch_add(1)) tasks[i]();
  });
}

// Index of the first element that is NaN or infinite: all exponent bits set.
std::optional<int64_t> FindNonFinite(const TensorView& tensor) {
  const auto find = [&]<typename Bits>(Bits exponent) -> std::optional<int64_t> {
    for (int64_t i = 0, n = tensor.elements(); i < n; ++i) {
      Bits bits;
      std::memcpy(&bits, tensor.data + i * sizeof(Bits), sizeof(Bits));
      if ((bits & exponent) == exponent) return i;
    }
    return std::nullopt;
  };
  switch (tensor.dtype) {
    case DType::kF32:
      return find(uint32_t{0x7F800000});
    case DType::kBF16:
      return find(uint16_t{0x7F80});
    case DType::kF16:
      return find(uint16_t{0x7C00});
    default:
      return std::nullopt;
  }
}

// Checks that all weights are finite numbers and returns the model's fingerprint, in one pass over the file.
absl::StatusOr<std::string> CheckAndFingerprint(ThreadPool& pool, const TensorTable& table, const ModelConfig& config,
                                                const std::string& folder) {
  struct Found {
    const std::string* name;
    const TensorView* tensor;
    std::optional<int64_t> non_finite;
    Sha256 digest;
  };
  std::vector<Found> found;
  for (const auto& [name, tensor] : table.taken()) found.push_back({&name, tensor, std::nullopt, {}});
  std::vector<std::function<void()>> tasks;
  for (Found& f : found) {
    tasks.push_back([&f] {
      f.non_finite = FindNonFinite(*f.tensor);
      f.digest = Sha256Of({reinterpret_cast<const char*>(f.tensor->data), static_cast<size_t>(f.tensor->bytes())});
    });
  }
  RunTasks(pool, tasks);
  std::map<std::string, Sha256> digests;
  for (const Found& f : found) {
    if (f.non_finite) {
      return absl::InvalidArgumentError(absl::StrCat(folder, ": tensor '", *f.name, "' holds NaN or infinity at index ",
                                                     *f.non_finite, " of ", f.tensor->elements()));
    }
    digests.emplace(*f.name, f.digest);
  }
  return Fingerprint(config.Canonical(), table.taken(), digests);
}

// Tensors in a file may lie at any byte; the arithmetic reads whole elements. Copies only where it must.
class AlignedTensor {
 public:
  explicit AlignedTensor(const TensorView& tensor) : data_(tensor.data) {
    if (reinterpret_cast<uintptr_t>(tensor.data) % SizeOf(tensor.dtype) == 0) return;
    copy_ = AlignedBytes(tensor.bytes());
    std::memcpy(copy_.data(), tensor.data, tensor.bytes());
    data_ = copy_.data();
  }
  const std::byte* data() const { return data_; }

 private:
  AlignedBytes copy_;
  const std::byte* data_;
};

float ElementAt(const TensorView& tensor, int64_t i) {
  if (tensor.dtype == DType::kF32) {
    float value;
    std::memcpy(&value, tensor.data + 4 * i, 4);
    return value;
  }
  uint16_t bits;
  std::memcpy(&bits, tensor.data + 2 * i, 2);
  return tensor.dtype == DType::kBF16 ? FloatFromBF16(bits) : FloatFromF16(bits);
}

AlignedArray<float> Floats(const TensorView& tensor) {
  AlignedArray<float> floats(tensor.elements());
  for (int64_t i = 0; i < floats.size(); ++i) floats[i] = ElementAt(tensor, i);
  return floats;
}

AlignedArray<float> Concatenated(std::span<const TensorView* const> tensors) {
  int64_t size = 0;
  for (const TensorView* tensor : tensors) size += tensor->elements();
  AlignedArray<float> floats(size);
  int64_t at = 0;
  for (const TensorView* tensor : tensors) {
    for (int64_t i = 0; i < tensor->elements(); ++i) floats[at++] = ElementAt(*tensor, i);
  }
  return floats;
}

// [channels, 1, W] each, to [W, channels of all].
AlignedArray<float> TransposedConvs(std::span<const TensorView* const> convs, int32_t width, int64_t channels) {
  AlignedArray<float> floats(width * channels);
  int64_t base = 0;
  for (const TensorView* conv : convs) {
    for (int64_t c = 0; c < conv->shape[0]; ++c) {
      for (int32_t j = 0; j < width; ++j) floats[j * channels + base + c] = ElementAt(*conv, c * width + j);
    }
    base += conv->shape[0];
  }
  return floats;
}

// Matrices of unlike types are widened to f32, which is exact.
PackedLinear Pack(std::span<const TensorView* const> tensors) {
  const bool alike =
      std::ranges::all_of(tensors, [&](const TensorView* tensor) { return tensor->dtype == tensors[0]->dtype; });
  std::vector<AlignedTensor> aligned;
  std::vector<AlignedArray<float>> widened;
  std::vector<PackedLinear::Source> sources;
  for (const TensorView* tensor : tensors) {
    if (alike) {
      sources.push_back({tensor->dtype, aligned.emplace_back(*tensor).data(), tensor->shape[0]});
    } else {
      sources.push_back({DType::kF32, widened.emplace_back(Floats(*tensor)).data(), tensor->shape[0]});
    }
  }
  return PackedLinear::PackStacked(sources, tensors[0]->shape[1]);
}

std::vector<std::function<void()>> PackTasks(const CheckpointTensors& tensors, ModelWeights& weights) {
  std::vector<std::function<void()>> tasks;
  // The largest first, so that no thread is left alone with it at the end.
  tasks.push_back([&] { weights.lm_head = Pack({{tensors.lm_head ? tensors.lm_head : tensors.embeddings}}); });
  tasks.push_back([&] {
    weights.embedding_dtype = tensors.embeddings->dtype;
    weights.embeddings = AlignedBytes(tensors.embeddings->bytes());
    std::memcpy(weights.embeddings.data(), tensors.embeddings->data, tensors.embeddings->bytes());
    weights.norm = Floats(*tensors.norm);
  });
  for (size_t i = 0; i < tensors.layers.size(); ++i) {
    const LayerTensors& from = tensors.layers[i];
    LayerWeights& to = weights.layers[i];
    const MixerConfig& mixer = weights.config.mixer;
    tasks.push_back([&from, &to] { to.gate_up = Pack(from.gate_up); });
    tasks.push_back([&from, &to] { to.down = Pack({{from.down}}); });
    tasks.push_back([&from, &to] { to.projections = Pack(from.projections); });
    tasks.push_back([&from, &to, &mixer] {
      to.o_proj = Pack({{from.o_proj}});
      to.attn_norm = Floats(*from.attn_norm);
      to.mlp_norm = Floats(*from.mlp_norm);
      to.o_norm = Floats(*from.o_norm);
      if (from.a_log != nullptr) to.a_log = Floats(*from.a_log);
      if (from.dt_bias != nullptr) to.dt_bias = Floats(*from.dt_bias);
      if (!from.convs.empty()) to.conv = TransposedConvs(from.convs, mixer.conv_width, mixer.conv_channels());
      if (!from.conv_biases.empty()) to.conv_bias = Concatenated(from.conv_biases);
    });
  }
  return tasks;
}

void FindOffsets(ModelWeights& weights) {
  const auto offset_of = [&](const std::string& name) {
    const auto piece = std::ranges::find(weights.layout.pieces(), name, &StatePieceSpec::name);
    PALIMPSEST_CHECK(piece != weights.layout.pieces().end());
    return piece->offset;
  };
  for (size_t i = 0; i < weights.layers.size(); ++i) {
    LayerWeights& layer = weights.layers[i];
    layer.fast_weight_offset = offset_of(absl::StrCat("layers.", i, ".fast_weight"));
    if (weights.config.mixer.conv_width > 1) {
      layer.conv_tail_offset = offset_of(absl::StrCat("layers.", i, ".conv_tail"));
    }
  }
}

// Sums up the sizes, and settles how the projections are computed.
absl::Status Settle(const std::string& folder, const ModelOptions& options, ModelWeights& weights) {
  bool any_bf16 = false;
  const auto count = [&](const PackedLinear& linear) {
    weights.bytes += linear.bytes();
    any_bf16 |= linear.dtype() == DType::kBF16;
  };
  count(weights.lm_head);
  weights.bytes += weights.embeddings.size() + 4 * weights.norm.size();
  for (const LayerWeights& layer : weights.layers) {
    for (const auto* linear : {&layer.projections, &layer.o_proj, &layer.gate_up, &layer.down}) count(*linear);
    for (const auto* floats : {&layer.attn_norm, &layer.conv, &layer.conv_bias, &layer.a_log, &layer.dt_bias,
                               &layer.o_norm, &layer.mlp_norm}) {
      weights.bytes += 4 * floats->size();
    }
  }
  weights.dtype = any_bf16 ? DType::kBF16 : DType::kF32;
  if (options.math == ModelOptions::Math::kBF16 && !any_bf16) {
    return absl::InvalidArgumentError(
        absl::StrCat(folder, ": bf16 arithmetic needs bf16 weights, these are f32 or f16; ask for auto or f32"));
  }
  const bool bf16 = options.math == ModelOptions::Math::kBF16 ||
                    (options.math == ModelOptions::Math::kAuto && any_bf16 && HasNativeBF16());
  weights.math = bf16 ? LinearMath::kBF16 : LinearMath::kF32;
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<const ModelWeights>> LoadWeights(const std::string& folder,
                                                                const ModelOptions& options) {
  absl::StatusOr<ModelConfig> config = ModelConfig::FromFolder(folder);
  if (!config.ok()) return config.status();
  absl::StatusOr<WeightFiles> files = WeightFiles::Open(folder);
  if (!files.ok()) return files.status();
  // Biases of the convolutions are announced by the file alone.
  if (config->mixer.conv_width > 0 && files->tensors().contains("model.layers.0.attn.q_conv1d.bias")) {
    config->mixer.conv_bias = true;
  }
  TensorTable table(files->tensors(), folder);
  absl::StatusOr<CheckpointTensors> tensors = TakeTensors(table, files->tensors(), *config);
  if (!tensors.ok()) return tensors.status();

  ThreadPool pool(std::clamp(static_cast<int>(std::thread::hardware_concurrency()), 1, kMaxLoadThreads));
  absl::StatusOr<std::string> fingerprint = CheckAndFingerprint(pool, table, *config, folder);
  if (!fingerprint.ok()) return fingerprint.status();

  auto weights = std::make_unique<ModelWeights>();
  weights->config = *config;
  weights->layout = StateLayout::FromConfig(*config);
  weights->layers.resize(config->layers);
  weights->fingerprint = *std::move(fingerprint);
  for (const auto& [name, tensor] : table.taken()) weights->parameter_count += tensor->elements();
  RunTasks(pool, PackTasks(*tensors, *weights));
  FindOffsets(*weights);
  if (absl::Status status = Settle(folder, options, *weights); !status.ok()) return status;
  return weights;
}

}  // namespace palimpsest
