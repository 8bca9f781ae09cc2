// A checkpoint loaded and ready: slow weights and the one forward pass.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "absl/status/statusor.h"
#include "kernels/common/ragged.h"
#include "kernels/common/thread_pool.h"
#include "kernels/linear/linear.h"
#include "kernels/sampling/sampling.h"
#include "server/model/chunk.h"
#include "server/model/config.h"
#include "server/model/state_layout.h"

namespace palimpsest {

struct ModelWeights;  // weights.h

// The roofline's lower bound: what the machine has to do at least.
struct WorkEstimate {
  int64_t bytes = 0;  // read or written: the weights once, each state once in and, unless it is written seldom, out
  int64_t flops = 0;  // a multiply-add counts two
};

struct ModelOptions {
  // Arithmetic of the projections. kAuto: kBF16 for bf16 weights where the processor multiplies bf16 natively (rounds
  // activations to bf16 before each projection, about 3 significant digits), else kF32.
  enum class Math { kAuto, kF32, kBF16 };
  Math math = Math::kAuto;
  // What a session's fast weights are kept as: kF32, or kBF16, which halves them and the traffic of a step, and is less
  // exact (docs/numerics.md). It is part of the state layout: states of one kind are of no use to the other.
  DType state_dtype = DType::kF32;
  // Where weights and arithmetic go; null: the processor. A device multiplies bf16 natively, and rounds factors of a
  // chunk's products to tf32 then. A model has a device of its own: nobody else may use it.
  std::shared_ptr<Device> device = nullptr;
  // On a device: every so many steps, a sequence's fast weights are written; between, what they lack is kept beside the
  // state (the replay form of kernels/fast_weight/fast_weight.h). Takes slot_bytes() - layout().bytes() more memory for
  // each slot, saves writes, changes no bit. 1: every step writes. Heads without that form, and the processor, take 1.
  int32_t write_interval = 1;
};

// A ragged batch. Prefill and decode are the same call: a sequence with one row is a step. On a device the steps come
// first, rows.num_steps says how many they are, and no sequence has 64 n + 1 rows for n > 0: what is left is a step of
// its own. Batches are in host memory in any case.
struct ForwardBatch {
  std::span<const int32_t> tokens;  // [rows], each in [0, vocabulary)
  RaggedRows rows;                  // slots index `states`
  // The slots, in the model's memory: slot_bytes() each, slot i at base + i * stride bytes. A slot begins with a state,
  // laid out by layout(), and is filled up with zeros when a state is put in. Updated in place.
  std::byte* states = nullptr;
  int64_t state_stride = 0;
  // Tokens that each sequence's state has taken in before. May be empty for a model whose ModelConfig::counts_tokens()
  // is false.
  std::span<const int64_t> first_position = {};
  // Rows whose logits are wanted, ascending.
  std::span<const int32_t> logit_rows = {};
  // For each of those, the one id whose log-probability is wanted, or kAllIds, or kNoIdYet. Empty: all of all, as on a
  // device in any case. A head of clusters then leaves out those that nobody asks for: the log-probability of such a
  // cluster stands at its first id, and its other ids have kNoLogit, so that a softmax over the row is still right for
  // the ids that are there.
  std::span<const int32_t> targets = {};
};

inline constexpr float kNoLogit = -1e30f;
inline constexpr int32_t kAllIds = -1;
inline constexpr int32_t kNoIdYet = -2;  // FinishSampling finds out

// Buffers of a forward pass; grows to the largest batch seen and is reused. One per thread that calls Forward. Must not
// outlive the model. On a device it keeps recordings of the passes that repeat, see Model::Forward.
class Workspace {
 public:
  Workspace();
  ~Workspace();
  Workspace(Workspace&&) noexcept;
  Workspace& operator=(Workspace&&) noexcept;

  struct Counts {
    int64_t recorded_passes = 0;  // run again from a recording
    int64_t direct_passes = 0;    // launched op by op
  };
  Counts counts() const;

  struct Buffers;  // layers/scratch.h

 private:
  friend class Model;
  std::unique_ptr<Buffers> buffers_;
};

// Read-only after Load; any number of threads may call Forward with workspaces, pools and states of their own.
class Model {
 public:
  // Reads and checks config.json and the safetensors of the folder, and packs the weights.
  // RESOURCE_EXHAUSTED: the device has too little free memory.
  // INVALID_ARGUMENT: configuration (see ModelConfig::FromJson), or a tensor that is missing, unknown, of another shape
  // than the configuration says, or that holds NaN or infinity; or bf16 arithmetic asked of other weights; or options
  // out of their ranges.  NOT_FOUND: no such folder or file.  DATA_LOSS: a weight file is truncated or damaged.
  static absl::StatusOr<std::unique_ptr<Model>> Load(const std::string& folder, const ModelOptions& options = {});
  ~Model();

  const ModelConfig& config() const;
  // Tokens that are processed at once: appends are cut into chunks of so many, counted from their first token.
  static constexpr int32_t chunk() { return kChunk; }
  // Tokens that a context may have, the pending one included; 0: any number.
  int64_t max_context() const;
  // What an iteration over `rows` tokens of `sequences` sequences cannot do without, `logit_rows` of them wanting
  // logits. Rather too little than too much: a table that rows are looked up in counts nothing, of a head that is cut
  // into clusters the first counts, and the arithmetic of an attention window counts nothing.
  WorkEstimate Work(int64_t rows, int64_t sequences, int64_t logit_rows) const;
  const StateLayout& layout() const;
  // Where its weights, and the states and logits it is given, are. Null: in host memory.
  Device* device() const;
  int64_t parameter_count() const;
  int64_t weight_bytes() const;  // packed, in memory
  DType weight_dtype() const;
  LinearMath math() const;
  // SHA-256 of configuration and weights, in hexadecimal.
  const std::string& fingerprint() const;

  // Bytes of a slot, a multiple of 64.
  int64_t slot_bytes() const;
  int32_t write_interval() const;  // in use: ModelOptions
  // Makes the states in these slots of `batch.states` whole, for who reads them. A Forward leaves them so unless
  // ModelOptions::write_interval is more than 1.
  void MakeWhole(const ExecContext& ctx, std::byte* states, int64_t state_stride, std::span<const int32_t> slots,
                 Workspace& workspace) const;

  // Memory, where the model runs, that batches of so many rows take: a workspace, and the logits of all rows, twice
  // where they are sampled with a bias.
  int64_t WorkspaceBytes(int64_t rows) const;

  // Takes the workspace for batches of so many rows, so that Forward needs no more. Throws std::bad_alloc.
  void Reserve(const ExecContext& ctx, Workspace& workspace, int64_t rows) const;

  // Runs the batch: `logits` [logit_rows.size(), vocabulary] is filled in and the states move on. No sequence may pass
  // ModelConfig::max_context(). The bits of a sequence's logits and state depend on its own tokens, its state and the
  // lengths of its chunks (64 tokens, counted from its first row) alone.
  //
  // On a device it returns when the pass is on the stream. A batch of steps that wants the logits of every row is
  // filled up to one of a few sizes (padded_steps.h), recorded the first time, and run from the recording from then on;
  // `logits` then has room for PaddedSteps(rows) rows. A failure shows in Device::Synchronize.
  void Forward(const ExecContext& ctx, const ForwardBatch& batch, Workspace& workspace, float* logits) const;

  // Finishes what BeginSample began (kernels/sampling/sampling.h) for logits that the last Forward with this workspace
  // filled in, `logits` being where. A draw that fell on a cluster that was left out is made again with it there.
  void FinishSampling(const ExecContext& ctx, Workspace& workspace, std::span<SampleRow> answers, float* logits) const;

 private:
  explicit Model(std::unique_ptr<const ModelWeights> weights);
  const std::unique_ptr<const ModelWeights> weights_;
};

}  // namespace palimpsest
