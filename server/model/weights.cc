#include "server/model/weights.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <functional>
#include <initializer_list>
#include <optional>
#include <span>
#include <thread>
#include <type_traits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/common/thread_pool.h"
#include "kernels/embedding/embedding.h"
#include "kernels/fast_weight/fast_weight.h"
#include "server/model/checkpoint/safetensors.h"
#include "server/model/checkpoint/tensor_names.h"
#include "server/model/checkpoint/tensor_table.h"
#include "server/model/checkpoint_tensors.h"
#include "server/model/fingerprint.h"

namespace palimpsest {
namespace {

constexpr int kMaxLoadThreads = 16;

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
    const auto is_bad = [&](int64_t i) {
      Bits bits;
      std::memcpy(&bits, tensor.data + i * sizeof(Bits), sizeof(Bits));
      return (bits & exponent) == exponent;
    };
    constexpr int64_t kBlock = 4096;  // looked at without a way out in between, so that it is done by vectors
    for (int64_t begin = 0, n = tensor.elements(); begin < n; begin += kBlock) {
      const int64_t end = std::min(begin + kBlock, n);
      Bits any = 0;
      for (int64_t i = begin; i < end; ++i) any |= static_cast<Bits>(is_bad(i));
      for (int64_t i = begin; any != 0 && i < end; ++i) {
        if (is_bad(i)) return i;
      }
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
PackedLinear Pack(std::span<const TensorView* const> tensors, Device* device) {
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
  return PackedLinear::PackStacked(sources, tensors[0]->shape[1], device);
}

// Of [rows, columns], [columns, rows].
AlignedArray<float> Transposed(const TensorView& tensor) {
  const int64_t rows = tensor.shape[0], columns = tensor.shape[1];
  AlignedArray<float> transposed(rows * columns);
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < columns; ++c) transposed[c * rows + r] = ElementAt(tensor, r * columns + c);
  }
  return transposed;
}

NormWeights Norm(const NormTensors& tensors) {
  NormWeights norm;
  if (tensors.weight != nullptr) norm.weight = Floats(*tensors.weight);
  if (tensors.bias != nullptr) norm.bias = Floats(*tensors.bias);
  return norm;
}

void PackOutput(const OutputTensors& from, Device* device, OutputWeights& to) {
  to.weights = Pack(from.weights, device);
  if (!from.biases.empty()) to.bias = Concatenated(from.biases);
  if (from.projection == nullptr) return;
  if (!from.transposed_projection) {
    to.projection = Pack({{from.projection}}, device);
    return;
  }
  const AlignedArray<float> transposed = Transposed(*from.projection);
  to.projection =
      PackedLinear::Pack(DType::kF32, transposed.data(), from.projection->shape[1], from.projection->shape[0], device);
}

void PackEmbedding(const EmbeddingTensors& from, Device* device, EmbeddingWeights& to) {
  to.width = static_cast<int32_t>(from.table->shape[1]);
  to.dtype = from.table->dtype;
  to.table = AlignedBytes(from.table->bytes());
  std::memcpy(to.table.data(), from.table->data, from.table->bytes());
  if (from.projection != nullptr) to.projection = Pack({{from.projection}}, device);
}

// 10000^(-2j/D), rounded as the toolkit's buffer of them is.
AlignedArray<float> Frequencies(int64_t hidden) {
  AlignedArray<float> frequencies(hidden / 2);
  for (int64_t j = 0; j < frequencies.size(); ++j) {
    frequencies[j] = 1.0f / std::pow(10000.0f, static_cast<float>(2 * j) / static_cast<float>(hidden));
  }
  return frequencies;
}

// Keys of the distances 0 to window - 1: the sinusoid of each, projected.
AlignedArray<float> RelativeKeys(const ModelWeights& weights, const TensorView& projection) {
  const MixerConfig& mixer = weights.config.mixer;
  const int32_t D = weights.config.hidden, window = mixer.window_capacity();
  std::vector<int64_t> distances(window);
  for (int32_t t = 0; t < window; ++t) distances[t] = std::min(t, mixer.largest_distance);
  ThreadPool pool(1);  // this is one of many tasks
  AlignedArray<float> sinusoids(int64_t{window} * D), keys(int64_t{window} * projection.shape[0]);
  AddSinusoid({&pool}, {.rows = window,
                        .dim = D,
                        .frequencies = weights.frequencies.data(),
                        .positions = distances.data(),
                        .y = sinusoids.data()});
  const AlignedArray<float> matrix = Floats(projection);
  const PackedLinear packed = PackedLinear::Pack(DType::kF32, matrix.data(), projection.shape[0], D);
  Linear({&pool}, {.weights = &packed,
                   .x = sinusoids.data(),
                   .ldx = D,
                   .y = keys.data(),
                   .ldy = projection.shape[0],
                   .rows = window});
  return keys;
}

void PackMixer(const LayerTensors& from, const ModelWeights& weights, LayerWeights& to) {
  const MixerConfig& mixer = weights.config.mixer;
  Device* const device = weights.device.get();
  to.o_proj = Pack({{from.o_proj}}, device);
  if (weights.config.norm_placement == NormPlacement::kPreRawQuery)
    to.raw_query = Pack({{from.projections[0]}}, device);
  const std::pair<const TensorView*, AlignedArray<float>*> arrays[] = {{from.o_norm, &to.o_norm},
                                                                       {from.a_log, &to.a_log},
                                                                       {from.dt_bias, &to.dt_bias},
                                                                       {from.up_bias, &to.up_bias},
                                                                       {from.down_bias, &to.down_bias}};
  for (const auto& [tensor, array] : arrays) {
    if (tensor != nullptr) *array = Floats(*tensor);
  }
  if (from.feature_projection != nullptr) to.features = Transposed(*from.feature_projection);
  to.attn_norm = Norm(from.attn_norm);
  to.mlp_norm = Norm(from.mlp_norm);
  if (!from.convs.empty()) to.conv = TransposedConvs(from.convs, mixer.conv_width, mixer.conv_channels());
  if (!from.conv_biases.empty()) to.conv_bias = Concatenated(from.conv_biases);
  if (from.relative_projection != nullptr) to.relative = RelativeKeys(weights, *from.relative_projection);
}

// Fills in `weights`, whose config is there.
std::vector<std::function<void()>> PackTasks(const CheckpointTensors& tensors, ModelWeights& weights) {
  const ModelConfig& config = weights.config;
  Device* const device = weights.device.get();
  weights.layers.resize(tensors.layers.size());
  weights.embeddings.resize(tensors.embeddings.size());
  weights.outputs.resize(tensors.outputs.size());
  if (config.sinusoidal_positions || config.mixer.relative_positions) weights.frequencies = Frequencies(config.hidden);
  std::vector<std::function<void()>> tasks;
  // The largest first, so that no thread is left alone with it at the end.
  for (size_t i = 0; i < tensors.outputs.size(); ++i) {
    weights.outputs[i].begin = config.cluster_begin(static_cast<int32_t>(i));
    weights.outputs[i].end = config.cluster_end(static_cast<int32_t>(i));
    tasks.push_back([device, &from = tensors.outputs[i], &to = weights.outputs[i]] { PackOutput(from, device, to); });
  }
  const bool one_table = tensors.embeddings.size() == 1;
  for (size_t i = 0; i < tensors.embeddings.size(); ++i) {
    weights.embeddings[i].begin = config.cluster_begin(static_cast<int32_t>(i));
    weights.embeddings[i].end = one_table ? config.vocabulary : config.cluster_end(static_cast<int32_t>(i));
    tasks.push_back(
        [device, &from = tensors.embeddings[i], &to = weights.embeddings[i]] { PackEmbedding(from, device, to); });
  }
  tasks.push_back([&] {
    weights.norm = Norm(tensors.norm);
    if (tensors.content_bias != nullptr) weights.content_bias = Floats(*tensors.content_bias);
    if (tensors.position_bias != nullptr) weights.position_bias = Floats(*tensors.position_bias);
  });
  for (size_t i = 0; i < tensors.layers.size(); ++i) {
    const LayerTensors& from = tensors.layers[i];
    LayerWeights& to = weights.layers[i];
    tasks.push_back([device, &from, &to] { to.up = Pack(from.up, device); });
    tasks.push_back([device, &from, &to] { to.down = Pack({{from.down}}, device); });
    tasks.push_back([device, &from, &to] { to.projections = Pack(from.projections, device); });
    tasks.push_back([&from, &to, &weights] { PackMixer(from, weights, to); });
  }
  return tasks;
}

void FindOffsets(ModelWeights& weights) {
  for (size_t i = 0; i < weights.layers.size(); ++i) {
    LayerWeights& layer = weights.layers[i];
    const std::pair<const char*, int64_t*> offsets[] = {{"fast_weight", &layer.fast_weight_offset},
                                                        {"key_sum", &layer.key_sum_offset},
                                                        {"conv_tail", &layer.conv_tail_offset},
                                                        {"window", &layer.window_offset}};
    for (const auto& [name, offset] : offsets) {
      const std::string full = absl::StrCat("layers.", i, ".", name);
      const auto piece = std::ranges::find(weights.layout.pieces(), full, &StatePieceSpec::name);
      if (piece != weights.layout.pieces().end()) *offset = piece->offset;
    }
  }
}

// Settles how a slot is laid out: the state, then what it may lack.
absl::Status LayOutSlots(const std::string& folder, const ModelOptions& options, ModelWeights& weights) {
  constexpr int32_t kMostInterval = 64;
  constexpr int64_t kAlignment = 64;
  const auto round_up = [](int64_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; };
  if (options.write_interval < 1 || options.write_interval > kMostInterval) {
    return absl::InvalidArgumentError(
        absl::StrCat(folder, ": write_interval is ", options.write_interval, ", expected 1 to ", kMostInterval));
  }
  if (options.state_dtype != DType::kF32 && options.state_dtype != DType::kBF16) {
    return absl::InvalidArgumentError(
        absl::StrCat(folder, ": state_dtype is ", std::string(NameOf(options.state_dtype)), ", expected f32 or bf16"));
  }
  weights.slot_bytes = round_up(weights.layout.bytes());
  const MixerConfig& mixer = weights.config.mixer;
  const bool replays = weights.device != nullptr && !mixer.is_window() && HasReplayForm(mixer.shape, mixer.rule);
  if (!replays) return absl::OkStatus();
  weights.write_interval = options.write_interval;
  if (weights.write_interval == 1) return absl::OkStatus();
  weights.pending_offset = weights.slot_bytes;
  weights.slot_bytes += kAlignment;
  for (LayerWeights& layer : weights.layers) {
    layer.replay_offset = weights.slot_bytes;
    weights.slot_bytes += round_up(mixer.shape.value_heads * (weights.write_interval - 1) *
                                   FastWeightReplay::entry_floats(mixer.shape) * int64_t{sizeof(float)});
  }
  return absl::OkStatus();
}

// Calls visit(matrix) and visit(array) for all there are, empty ones too.
template <typename Visit>
void ForEachPart(ModelWeights& weights, Visit visit) {
  const auto norm = [&](NormWeights& part) {
    visit(part.weight);
    visit(part.bias);
  };
  for (EmbeddingWeights& embedding : weights.embeddings) {
    visit(embedding.table);
    visit(embedding.projection);
  }
  for (OutputWeights& output : weights.outputs) {
    visit(output.projection);
    visit(output.weights);
    visit(output.bias);
  }
  for (LayerWeights& layer : weights.layers) {
    for (PackedLinear* matrix : {&layer.projections, &layer.raw_query, &layer.o_proj, &layer.up, &layer.down}) {
      visit(*matrix);
    }
    for (AlignedArray<float>* array : {&layer.conv, &layer.conv_bias, &layer.a_log, &layer.dt_bias, &layer.features,
                                       &layer.relative, &layer.o_norm, &layer.up_bias, &layer.down_bias}) {
      visit(*array);
    }
    norm(layer.attn_norm);
    norm(layer.mlp_norm);
  }
  norm(weights.norm);
  for (AlignedArray<float>* array : {&weights.content_bias, &weights.position_bias, &weights.frequencies})
    visit(*array);
}

// Puts what was made in host memory onto the device; matrices are there already. The host memory goes.
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
  ForEachPart(weights, [&]<typename Part>(Part& part) {
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

// Sums up the sizes, and settles how the projections are computed.
absl::Status Settle(const std::string& folder, const ModelOptions& options, ModelWeights& weights) {
  bool any_bf16 = false;
  ForEachPart(weights, [&]<typename Part>(const Part& part) {
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

}  // namespace

absl::StatusOr<std::unique_ptr<const ModelWeights>> LoadWeights(const std::string& folder,
                                                                const ModelOptions& options) {
  if (absl::Status status = CheckIsFolder(folder); !status.ok()) return status;
  absl::StatusOr<ModelConfig> config = ModelConfig::FromFolder(folder);
  if (!config.ok()) return config.status();
  absl::StatusOr<WeightFiles> files = WeightFiles::Open(folder);
  if (!files.ok()) return files.status();
  const TensorMap named = WithKnownNames(files->tensors(), config->tied_embeddings);
  // Biases of the convolutions are announced by the file alone.
  if (config->mixer.conv_width > 0 && named.contains("model.layers.0.attn.q_conv1d.bias")) {
    config->mixer.conv_bias = true;
  }
  TensorTable table(named, folder);
  absl::StatusOr<CheckpointTensors> tensors = TakeTensors(table, named, *config);
  if (!tensors.ok()) return tensors.status();

  ThreadPool pool(std::clamp(static_cast<int>(std::thread::hardware_concurrency()), 1, kMaxLoadThreads));
  absl::StatusOr<std::string> fingerprint = CheckAndFingerprint(pool, table, *config, folder);
  if (absl::Status status = files->CheckUnchanged(); !status.ok()) return status;
  if (!fingerprint.ok()) return fingerprint.status();

  auto weights = std::make_unique<ModelWeights>();
  weights->device = options.device;
  weights->config = *config;
  weights->state_dtype = options.state_dtype;
  weights->layout = StateLayout::FromConfig(*config, options.state_dtype);
  weights->fingerprint = *std::move(fingerprint);
  for (const auto& [name, tensor] : table.taken()) weights->parameter_count += tensor->elements();
  RunTasks(pool, PackTasks(*tensors, *weights));
  if (absl::Status status = files->CheckUnchanged(); !status.ok()) return status;
  FindOffsets(*weights);
  if (absl::Status status = LayOutSlots(folder, options, *weights); !status.ok()) return status;
  if (weights->device != nullptr) {
    if (absl::Status status = MoveToDevice(folder, *weights); !status.ok()) return status;
  }
  if (absl::Status status = Settle(folder, options, *weights); !status.ok()) return status;
  return weights;
}

}  // namespace palimpsest
