// From a folder to a model: its files opened and checked, its tensors taken by name, packed and placed.
#include <algorithm>
#include <atomic>
#include <cstring>
#include <functional>
#include <map>
#include <new>
#include <optional>
#include <span>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "kernels/common/thread_pool.h"
#include "server/model/checkpoint/safetensors.h"
#include "server/model/checkpoint/tensor_names.h"
#include "server/model/checkpoint/tensor_table.h"
#include "server/model/layers/sinusoids.h"
#include "server/model/loading/fingerprint.h"
#include "server/model/loading/pack.h"
#include "server/model/loading/place.h"
#include "server/model/loading/tensor_taker.h"
#include "server/model/weights.h"

namespace palimpsest {
namespace {

constexpr int kMaxLoadThreads = 16;

// Runs the tasks on all threads; any thread takes the next one. Throws std::bad_alloc, here, if one of them has.
void RunTasks(ThreadPool& pool, std::span<const std::function<void()>> tasks) {
  std::atomic<size_t> next{0};
  std::atomic<bool> no_memory{false};
  pool.Run([&](int) {
    try {
      for (size_t i = next.fetch_add(1); i < tasks.size() && !no_memory; i = next.fetch_add(1)) tasks[i]();
    } catch (const std::bad_alloc&) {
      no_memory = true;
    }
  });
  if (no_memory) throw std::bad_alloc();
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
    Sha256Digest digest;
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
  std::map<std::string, Sha256Digest> digests;
  for (const Found& f : found) {
    if (f.non_finite) {
      return absl::InvalidArgumentError(absl::StrCat(folder, ": tensor '", *f.name, "' holds NaN or infinity at index ",
                                                     *f.non_finite, " of ", f.tensor->elements()));
    }
    digests.emplace(*f.name, f.digest);
  }
  return Fingerprint(config.Canonical(), table.taken(), digests);
}

struct LayerTensors {
  TensorsByRole mixer;  // and its norm
  TensorsByRole channel;
};

struct CheckpointTensors {
  std::vector<EmbeddingTensors> embeddings;
  std::vector<LayerTensors> layers;
  TensorsByRole final_norm;
  std::vector<HeadTensors> heads;
};

std::vector<TensorSpec> Joined(std::vector<TensorSpec> specs, const std::vector<TensorSpec>& more) {
  specs.insert(specs.end(), more.begin(), more.end());
  return specs;
}

// All tensors of the model. INVALID_ARGUMENT names the first that is missing, unknown or of another shape.
absl::StatusOr<CheckpointTensors> TakeTensors(const ModelConfig& config, TensorTaker& taker, TensorTable& table) {
  const int64_t hidden = config.hidden;
  CheckpointTensors taken;
  taken.embeddings = TakeEmbedding(config, taker);
  taken.heads = TakeHead(config, taken.embeddings, taker);
  for (size_t i = 0; i < config.layers.size(); ++i) {
    const LayerConfig& layer = config.layers[i];
    const auto tensors_of = [&](const auto& of_kind) { return Tensors(of_kind, hidden); };
    const auto mixer = Joined(Tensors(layer.norm, Role::kMixerNorm, Role::kMixerNormBias, hidden),
                              std::visit(tensors_of, layer.mixer));
    const auto channel = Joined(Tensors(layer.norm, Role::kChannelNorm, Role::kChannelNormBias, hidden),
                                std::visit(tensors_of, layer.channel));
    taken.layers.push_back({.mixer = taker.Take(mixer, i), .channel = taker.Take(channel, i)});
  }
  if (config.head.norm) {
    taken.final_norm = taker.Take(Tensors(*config.head.norm, Role::kFinalNorm, Role::kFinalNormBias, hidden), 0);
  }
  taker.Finish();
  if (absl::Status status = table.Finish(); !status.ok()) return status;
  return taken;
}

// What the file alone tells: biases of the convolutions, and maps of keys that are there though they are those of
// queries.
void AskFile(const TensorTaker& taker, ModelConfig& config) {
  for (size_t i = 0; i < config.layers.size(); ++i) {
    auto* const mixer = std::get_if<FastWeightConfig>(&config.layers[i].mixer);
    if (mixer == nullptr) continue;
    if (mixer->conv && taker.Find(Role::kQueryConvBias, i) != nullptr) mixer->conv->bias = true;
    // The map of queries may go by the name of that of keys, if it is the only one.
    const TensorView* const key_map = mixer->features.tied ? taker.Find(Role::kKeyMap, i) : nullptr;
    if (key_map != nullptr && taker.Find(Role::kQueryMap, i) != key_map) mixer->features.tied = false;
  }
}

// Fills in `weights`, whose config is there.
std::vector<std::function<void()>> LoadTasks(const CheckpointTensors& tensors, ModelWeights& weights) {
  const ModelConfig& config = weights.config;
  Device* const device = weights.device.get();
  EmbeddingLayer& embedding = weights.embedding;
  embedding = {.config = config.embedding, .segment_length = config.segment_length};
  embedding.tables.resize(tensors.embeddings.size());
  weights.head.vocabulary = config.vocabulary;
  weights.head.clusters.resize(tensors.heads.size());
  weights.layers.resize(config.layers.size());
  std::vector<std::function<void()>> tasks;
  // The largest first, so that no thread is left alone with it at the end.
  for (int32_t i = 0; i < std::ssize(tensors.heads); ++i) {
    tasks.push_back([&, device, i] {
      weights.head.clusters[i] = LoadCluster(tensors.heads[i], config.cluster_begin(i), config.cluster_end(i), device);
    });
  }
  const bool one_table = tensors.embeddings.size() == 1;
  for (int32_t i = 0; i < std::ssize(tensors.embeddings); ++i) {
    tasks.push_back([&, device, i, one_table] {
      weights.embedding.tables[i] = LoadTable(tensors.embeddings[i], config.cluster_begin(i),
                                              one_table ? config.vocabulary : config.cluster_end(i), device);
    });
  }
  tasks.push_back([&] {
    if (config.embedding.sinusoids) weights.embedding.frequencies = SinusoidFrequencies(config.hidden);
    if (config.head.norm) {
      weights.head.norm = Load(*config.head.norm, tensors.final_norm, Role::kFinalNorm, Role::kFinalNormBias);
    }
  });
  for (size_t i = 0; i < config.layers.size(); ++i) {
    const LayerConfig& layer = config.layers[i];
    const LayerTensors& from = tensors.layers[i];
    Layer& to = weights.layers[i];
    to.placement = layer.placement;
    tasks.push_back([device, &layer, &from, &to] {
      std::visit([&](const auto& channel) { to.channel = Load(channel, from.channel, device); }, layer.channel);
      to.channel_norm = Load(layer.norm, from.channel, Role::kChannelNorm, Role::kChannelNormBias);
    });
    tasks.push_back([device, &layer, &from, &to, &config] {
      std::visit([&](const auto& mixer) { to.mixer = Load(mixer, from.mixer, config.hidden, device); }, layer.mixer);
      to.mixer_norm = Load(layer.norm, from.mixer, Role::kMixerNorm, Role::kMixerNormBias);
    });
  }
  return tasks;
}

// The layout that StateLayout::FromConfig gives; the layers keep where their pieces are.
void LayOutState(DType fast_weights, ModelWeights& weights) {
  StateLayoutBuilder builder(fast_weights);
  for (size_t i = 0; i < weights.layers.size(); ++i) {
    builder.EnterLayer(i);
    std::visit([&](auto& mixer) { mixer.state = Pieces(mixer.config, builder); }, weights.layers[i].mixer);
  }
  weights.layout = std::move(builder).Finish();
  PALIMPSEST_CHECK(weights.layout.hash() == StateLayout::FromConfig(weights.config, fast_weights).hash());
}

}  // namespace

absl::StatusOr<std::unique_ptr<const ModelWeights>> LoadWeights(const std::string& folder,
                                                                const ModelOptions& options) {
  if (absl::Status status = CheckIsFolder(folder); !status.ok()) return status;
  absl::StatusOr<ModelConfig> config = ModelConfig::FromFolder(folder);
  if (!config.ok()) return config.status();
  absl::StatusOr<WeightFiles> files = WeightFiles::Open(folder);
  if (!files.ok()) return files.status();
  const TensorMap named = WithKnownNames(files->tensors(), config->head.tied);
  TensorTable table(named, folder);
  TensorTaker taker(named, table, *FindArchitecture(config->architecture));
  AskFile(taker, *config);
  absl::StatusOr<CheckpointTensors> tensors = TakeTensors(*config, taker, table);
  if (!tensors.ok()) return tensors.status();

  ThreadPool pool(std::clamp(static_cast<int>(std::thread::hardware_concurrency()), 1, kMaxLoadThreads));
  absl::StatusOr<std::string> fingerprint = CheckAndFingerprint(pool, table, *config, folder);
  if (absl::Status status = files->CheckUnchanged(); !status.ok()) return status;
  if (!fingerprint.ok()) return fingerprint.status();

  auto weights = std::make_unique<ModelWeights>();
  weights->device = options.device;
  weights->config = *config;
  weights->fingerprint = *std::move(fingerprint);
  for (const auto& [name, tensor] : table.taken()) weights->parameter_count += tensor->elements();
  RunTasks(pool, LoadTasks(*tensors, *weights));
  if (absl::Status status = files->CheckUnchanged(); !status.ok()) return status;
  LayOutState(options.state_dtype, *weights);
  if (absl::Status status = LayOutSlots(folder, options, *weights); !status.ok()) return status;
  if (weights->device != nullptr) {
    if (absl::Status status = MoveToDevice(folder, *weights); !status.ok()) return status;
  }
  if (absl::Status status = FinishSizes(folder, options, *weights); !status.ok()) return status;
  return weights;
}

}  // namespace palimpsest
