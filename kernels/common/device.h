// A device: memory of its own, one stream of work, and a home for every op.
//
// Ops and copies are put on the stream and return at once; they run in that order. Pointers in an op's parameters are
// then the device's: of arrays that the op reads or writes, and of the ragged batch's (row_begin, slot,
// first_position), tokens and positions. Host memory that CopyToDevice reads may be changed as soon as it returns,
// unless it came from AllocatePinned: that must be left alone until the stream has passed.
//
// A failure, of a launch or of the device itself, is kept: what follows does nothing, and Synchronize tells. It never
// goes away again; the process should end what is in flight and stop.
//
// Memory, copies and Synchronize may be called by several threads, which load parts of a model; ops and graphs by one
// at a time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace palimpsest {

struct AdvanceReplayParams;
struct AttentionNormParams;
struct CopyRowsParams;
struct EmbeddingParams;
struct FastWeightMixerParams;
struct FastWeightParams;
struct FeatureMapParams;
struct FlushReplayParams;
struct GateParams;
struct LayerNormParams;
struct LinearParams;
struct LogSoftmaxParams;
struct ReluParams;
struct RmsNormParams;
struct SampleRow;
struct ShortConvParams;
struct SinusoidParams;
struct SwigluParams;
struct WindowAttentionParams;

struct DeviceInfo {
  std::string name;
  int32_t index = 0;
  int32_t compute_capability = 0;  // 90 for 9.0
  int32_t multiprocessors = 0;
  int64_t shared_bytes_per_block = 0;  // the most that a kernel can ask for
  int64_t total_bytes = 0;
};

class Device {
 public:
  virtual ~Device() = default;

  virtual const DeviceInfo& info() const = 0;
  // Bytes of its memory that nobody has.
  virtual int64_t FreeBytes() = 0;

  // Null when there is not enough. What is freed may still be in use by the stream: freeing waits for it.
  virtual std::byte* Allocate(int64_t bytes) = 0;
  virtual void Free(std::byte* memory) = 0;
  // Host memory that copies go to and from without a detour.
  virtual std::byte* AllocatePinned(int64_t bytes) = 0;
  virtual void FreePinned(std::byte* memory) = 0;

  virtual void CopyToDevice(void* to, const void* from, int64_t bytes) = 0;
  // The host may read `to` after the next Synchronize.
  virtual void CopyToHost(void* to, const void* from, int64_t bytes) = 0;
  virtual void FillWithZeros(void* memory, int64_t bytes) = 0;

  // Waits for the stream. INTERNAL: something failed, now or before; the message names it.
  virtual absl::Status Synchronize() = 0;

  // A copy that runs beside the stream: from what the stream has written so far, into memory of AllocatePinned, while
  // the stream goes on. What comes on the stream later may overwrite the source only behind StreamAwaits.
  class SideCopy {
   public:
    virtual ~SideCopy() = default;
  };
  // May be used for one copy after the other. Null if the device has no more of them.
  virtual std::unique_ptr<SideCopy> MakeSideCopy() = 0;
  virtual void CopyToHostAside(SideCopy& copy, void* to, const void* from, int64_t bytes) = 0;
  // Waits for the copy. INTERNAL as Synchronize.
  virtual absl::Status Await(SideCopy& copy) = 0;
  // Has what is put on the stream from now on wait for the copy.
  virtual void StreamAwaits(SideCopy& copy) = 0;

  // What `work` puts on the stream, to be run again and again at the cost of one launch: same kernels, same pointers,
  // same numbers. `work` must not allocate, free or synchronise. Null if the device would not record it.
  class Graph {
   public:
    virtual ~Graph() = default;
  };
  virtual std::unique_ptr<Graph> Record(const std::function<void()>& work) = 0;
  virtual void Run(Graph& graph) = 0;

  // The ops: each does what the function of that name in its header says.
  virtual void Run(const AdvanceReplayParams& params) = 0;
  virtual void Run(const AttentionNormParams& params) = 0;
  virtual void Run(const CopyRowsParams& params) = 0;
  virtual void Run(const EmbeddingParams& params) = 0;
  // Steps alone, of a mixer that has fused steps (fast_weight_mixer.h).
  virtual void Run(const FastWeightMixerParams& params) = 0;
  virtual void Run(const FastWeightParams& params) = 0;
  virtual void Run(const FeatureMapParams& params) = 0;
  virtual void Run(const FlushReplayParams& params) = 0;
  virtual void Run(const GateParams& params) = 0;
  virtual void Run(const LayerNormParams& params) = 0;
  virtual void Run(const LinearParams& params) = 0;
  virtual void Run(const LogSoftmaxParams& params) = 0;
  virtual void Run(const ReluParams& params) = 0;
  virtual void Run(const RmsNormParams& params) = 0;
  virtual void Run(const ShortConvParams& params) = 0;
  virtual void Run(const SinusoidParams& params) = 0;
  virtual void Run(const SwigluParams& params) = 0;
  virtual void Run(const WindowAttentionParams& params) = 0;
  // Has rows sampled, and waits for the answers to the same rows, which are the host's; after a failure they are as
  // they were. What rows point to must stay until then. One batch of rows at a time.
  virtual void BeginSample(std::span<const SampleRow> rows, int32_t vocabulary) = 0;
  virtual void FinishSample(std::span<SampleRow> rows) = 0;
};

struct DeviceOptions {
  int32_t index = 0;
  // Waits after each op, so that a failure is told where it happens and tests can look at results.
  bool blocking = false;
};

// NOT_FOUND: no such device, or no driver.  FAILED_PRECONDITION: the device is too old for what was compiled.
// RESOURCE_EXHAUSTED: it has too little free memory to begin with.  INTERNAL: it or one of its libraries does not
// start.
using OpenDeviceFunction = absl::StatusOr<std::unique_ptr<Device>>(const DeviceOptions& options);

}  // namespace palimpsest
