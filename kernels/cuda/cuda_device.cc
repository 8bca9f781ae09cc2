#include "kernels/cuda/cuda_device.h"

#include <atomic>
#include <cstring>
#include <mutex>
#include <shared_mutex>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "kernels/cuda/blas.h"
#include "kernels/cuda/ops.h"
#include "kernels/linear/linear_device.h"
#include "kernels/sampling/sampling_device.h"

namespace palimpsest {
namespace {

// The oldest compute capability that kernels are compiled for.
constexpr int32_t kLeastCapability = 80;
// Device memory of products: the library's workspace, and rows of x as bf16.
constexpr int64_t kWorkspaceBytes = int64_t{32} << 20;
constexpr int64_t kScratchBytes = int64_t{32} << 20;

class CudaDevice : public Device {
 public:
  CudaDevice(DeviceInfo info, bool blocking) : info_(std::move(info)), blocking_(blocking) {
    target_.shared_bytes_per_block = info_.shared_bytes_per_block;
  }

  ~CudaDevice() override {
    cudaSetDevice(info_.index);
    if (target_.stream != nullptr) cudaStreamSynchronize(target_.stream);
    if (side_ != nullptr) cudaStreamSynchronize(side_);
    sampler_.reset();
    resources_.blas = nullptr;
    blas_.reset();
    products_ = {};
    if (side_ != nullptr) cudaStreamDestroy(side_);
    if (target_.stream != nullptr) cudaStreamDestroy(target_.stream);
  }

  // To be called once.
  absl::Status Start() {
    Note("cudaSetDevice", cudaSetDevice(info_.index));
    target_.overlaps = cuda::KernelsOverlap();
    Note("cudaStreamCreate", cudaStreamCreateWithFlags(&target_.stream, cudaStreamNonBlocking));
    Note("cudaStreamCreate", cudaStreamCreateWithFlags(&side_, cudaStreamNonBlocking));
    if (error_ != cudaSuccess) return Failure();
    products_ = AlignedBytes(kWorkspaceBytes + kScratchBytes, this);
    if (products_.data() == nullptr) {
      return absl::ResourceExhaustedError(absl::StrCat(
          info_.name, " has too little free memory to begin with: ", kWorkspaceBytes + kScratchBytes, " bytes"));
    }
    blas_ = cuda::Blas::Create(products_.data(), kWorkspaceBytes);
    if (blas_ == nullptr) {
      return absl::InternalError(absl::StrCat(
          "cuBLASLt does not start on ", info_.name,
          "; its library, CUDA's libcublasLt.so, must be where the dynamic loader looks: see LD_LIBRARY_PATH"));
    }
    resources_ = {.blas = blas_.get(), .scratch = products_.data() + kWorkspaceBytes, .scratch_bytes = kScratchBytes};
    sampler_ = std::make_unique<cuda::DeviceSampler>(*this);
    return absl::OkStatus();
  }

  const DeviceInfo& info() const override { return info_; }

  int64_t FreeBytes() override {
    const std::lock_guard<std::recursive_mutex> lock(mutex_);
    cudaSetDevice(info_.index);
    size_t free = 0, total = 0;
    return cudaMemGetInfo(&free, &total) == cudaSuccess ? static_cast<int64_t>(free) : 0;
  }

  std::byte* Allocate(int64_t bytes) override {
    const std::lock_guard<std::recursive_mutex> lock(mutex_);
    cudaSetDevice(info_.index);
    void* memory = nullptr;
    if (cudaMalloc(&memory, static_cast<size_t>(bytes)) != cudaSuccess) {
      cudaGetLastError();  // not sticky: the caller is told by null
      return nullptr;
    }
    return static_cast<std::byte*>(memory);
  }

  void Free(std::byte* memory) override {
    const std::lock_guard<std::recursive_mutex> lock(mutex_);
    PALIMPSEST_CHECK(recorder_ == std::thread::id());
    cudaSetDevice(info_.index);
    AwaitBothStreams();
    Note("cudaFree", cudaFree(memory));
  }

  std::byte* AllocatePinned(int64_t bytes) override {
    const std::lock_guard<std::recursive_mutex> lock(mutex_);
    cudaSetDevice(info_.index);
    void* memory = nullptr;
    if (cudaMallocHost(&memory, static_cast<size_t>(bytes)) != cudaSuccess) {
      cudaGetLastError();
      return nullptr;
    }
    return static_cast<std::byte*>(memory);
  }

  void FreePinned(std::byte* memory) override {
    const std::lock_guard<std::recursive_mutex> lock(mutex_);
    PALIMPSEST_CHECK(recorder_ == std::thread::id());
    cudaSetDevice(info_.index);
    AwaitBothStreams();
    Note("cudaFreeHost", cudaFreeHost(memory));
  }

  void CopyToDevice(void* to, const void* from, int64_t bytes) override {
    Copy("copy to the device", to, from, bytes, cudaMemcpyHostToDevice);
  }
  void CopyToHost(void* to, const void* from, int64_t bytes) override {
    Copy("copy to the host", to, from, bytes, cudaMemcpyDeviceToHost);
  }
  void FillWithZeros(void* memory, int64_t bytes) override {
    const std::lock_guard<std::recursive_mutex> lock(mutex_);
    if (error_ != cudaSuccess || bytes == 0) return;
    cudaSetDevice(info_.index);
    Note("fill with zeros", cudaMemsetAsync(memory, 0, static_cast<size_t>(bytes), target_.stream));
  }

  absl::Status Synchronize() override {
    PALIMPSEST_CHECK(recorder_ != std::this_thread::get_id());
    cudaSetDevice(info_.index);
    // Not under the lock of memory and copies: who asks for free memory meanwhile is not to wait for a batch.
    cudaError_t waited = cudaSuccess;
    {
      const std::shared_lock<std::shared_mutex> lock(recording_);
      waited = cudaStreamSynchronize(target_.stream);
    }
    const std::lock_guard<std::recursive_mutex> lock(mutex_);
    Note("work on the stream", waited);
    return error_ == cudaSuccess ? absl::OkStatus() : Failure();
  }

  std::unique_ptr<SideCopy> MakeSideCopy() override {
    const std::lock_guard<std::recursive_mutex> lock(mutex_);
    cudaSetDevice(info_.index);
    auto copy = std::make_unique<CudaSideCopy>();
    for (cudaEvent_t* const event : {&copy->source_ready, &copy->done}) {
      if (cudaEventCreateWithFlags(event, cudaEventDisableTiming) == cudaSuccess) continue;
      cudaGetLastError();
      return nullptr;
    }
    return copy;
  }

  void CopyToHostAside(SideCopy& copy, void* to, const void* from, int64_t bytes) override {
    const auto& events = static_cast<CudaSideCopy&>(copy);
    const std::lock_guard<std::recursive_mutex> lock(mutex_);
    if (error_ != cudaSuccess) return;
    cudaSetDevice(info_.index);
    Note("cudaEventRecord", cudaEventRecord(events.source_ready, target_.stream));
    Note("cudaStreamWaitEvent", cudaStreamWaitEvent(side_, events.source_ready, 0));
    Note("copy to the host", cudaMemcpyAsync(to, from, static_cast<size_t>(bytes), cudaMemcpyDeviceToHost, side_));
    Note("cudaEventRecord", cudaEventRecord(events.done, side_));
  }

  absl::Status Await(SideCopy& copy) override {
    cudaSetDevice(info_.index);
    const cudaError_t waited = cudaEventSynchronize(static_cast<CudaSideCopy&>(copy).done);
    const std::lock_guard<std::recursive_mutex> lock(mutex_);
    Note("copy to the host", waited);
    return error_ == cudaSuccess ? absl::OkStatus() : Failure();
  }

  void StreamAwaits(SideCopy& copy) override {
    const std::lock_guard<std::recursive_mutex> lock(mutex_);
    if (error_ != cudaSuccess) return;
    cudaSetDevice(info_.index);
    Note("cudaStreamWaitEvent", cudaStreamWaitEvent(target_.stream, static_cast<CudaSideCopy&>(copy).done, 0));
  }

  std::unique_ptr<Graph> Record(const std::function<void()>& work) override {
    // Until the end of it, other threads' copies would become part of what is recorded, and their waiting would end it.
    const std::unique_lock<std::shared_mutex> nobody_waits(recording_);
    const std::lock_guard<std::recursive_mutex> nobody_copies(mutex_);
    recorder_ = std::this_thread::get_id();
    cudaSetDevice(info_.index);
    const bool blocking = std::exchange(blocking_, false);
    std::unique_ptr<CudaGraph> recorded;
    if (error_ == cudaSuccess &&
        cudaStreamBeginCapture(target_.stream, cudaStreamCaptureModeThreadLocal) == cudaSuccess) {
      work();
      cudaGraph_t graph = nullptr;
      cudaGraphExec_t executable = nullptr;
      if (cudaStreamEndCapture(target_.stream, &graph) == cudaSuccess && graph != nullptr) {
        if (cudaGraphInstantiate(&executable, graph, 0) == cudaSuccess) {
          recorded = std::make_unique<CudaGraph>(executable);
        }
        cudaGraphDestroy(graph);
      }
      if (recorded == nullptr) cudaGetLastError();
    }
    blocking_ = blocking;
    recorder_ = std::thread::id();
    return recorded;
  }

  void Run(Graph& graph) override {
    Do("graph", [&] { return cudaGraphLaunch(static_cast<CudaGraph&>(graph).executable, target_.stream); });
  }

  void Run(const AdvanceReplayParams& params) override { RunOp("AdvanceReplay", params); }
  void Run(const AttentionNormParams& params) override { RunOp("AttentionNorm", params); }
  void Run(const CopyRowsParams& params) override { RunOp("CopyRows", params); }
  void Run(const EmbeddingParams& params) override { RunOp("Embedding", params); }
  void Run(const FastWeightMixerParams& params) override { RunOp("FastWeightMixer", params); }
  void Run(const FastWeightParams& params) override { RunOp("FastWeight", params); }
  void Run(const FeatureMapParams& params) override { RunOp("FeatureMap", params); }
  void Run(const FlushReplayParams& params) override { RunOp("FlushReplay", params); }
  void Run(const GateParams& params) override { RunOp("Gate", params); }
  void Run(const LayerNormParams& params) override { RunOp("LayerNorm", params); }
  void Run(const LogSoftmaxParams& params) override { RunOp("LogSoftmax", params); }
  void Run(const ReluParams& params) override { RunOp("Relu", params); }
  void Run(const RmsNormParams& params) override { RunOp("RmsNorm", params); }
  void Run(const ShortConvParams& params) override { RunOp("ShortConv", params); }
  void Run(const SinusoidParams& params) override { RunOp("AddSinusoid", params); }
  void Run(const SwigluParams& params) override { RunOp("Swiglu", params); }
  void Run(const WindowAttentionParams& params) override { RunOp("WindowAttention", params); }
  void Run(const LinearParams& params) override {
    Do("Linear", [&] { return cuda::Run(params, resources_, target_); });
  }

  void BeginSample(std::span<const SampleRow> rows, int32_t vocabulary) override {
    if (rows.empty()) return;
    bool packed = false;
    Do("Sample", [&] {
      packed = sampler_->Pack(rows, vocabulary);
      return packed ? sampler_->Launch(target_) : cudaErrorMemoryAllocation;
    });
    if (packed) sampler_->CopyAnswers();
  }

  void FinishSample(std::span<SampleRow> rows) override {
    if (!rows.empty() && Synchronize().ok()) sampler_->Unpack(rows);
  }

 private:
  struct CudaGraph : Graph {
    explicit CudaGraph(cudaGraphExec_t executable) : executable(executable) {}
    ~CudaGraph() override { cudaGraphExecDestroy(executable); }
    cudaGraphExec_t executable;
  };

  struct CudaSideCopy : SideCopy {
    ~CudaSideCopy() override {
      for (const cudaEvent_t event : {source_ready, done}) {
        if (event != nullptr) cudaEventDestroy(event);
      }
    }
    cudaEvent_t source_ready = nullptr;
    cudaEvent_t done = nullptr;
  };

  void AwaitBothStreams() {
    for (const cudaStream_t stream : {target_.stream, side_}) {
      if (stream != nullptr) Note("cudaStreamSynchronize", cudaStreamSynchronize(stream));
    }
  }

  absl::Status Failure() const {
    return absl::InternalError(
        absl::StrCat("the device ", info_.name, " failed: ", failed_, ": ", cudaGetErrorString(error_)));
  }

  void Note(const char* what, cudaError_t error) {
    if (error == cudaSuccess || error_ != cudaSuccess) return;
    error_ = error;
    failed_ = what;
  }

  template <typename Work>
  void Do(const char* what, Work work) {
    if (error_ != cudaSuccess) return;
    cudaSetDevice(info_.index);
    Note(what, work());
    if (blocking_) Note(what, cudaStreamSynchronize(target_.stream));
  }

  template <typename Params>
  void RunOp(const char* name, const Params& params) {
    Do(name, [&] { return cuda::Run(params, target_); });
  }

  void Copy(const char* what, void* to, const void* from, int64_t bytes, cudaMemcpyKind kind) {
    const std::lock_guard<std::recursive_mutex> lock(mutex_);
    if (error_ != cudaSuccess || bytes == 0) return;
    cudaSetDevice(info_.index);
    Note(what, cudaMemcpyAsync(to, from, static_cast<size_t>(bytes), kind, target_.stream));
    if (blocking_) Note(what, cudaStreamSynchronize(target_.stream));
  }

  const DeviceInfo info_;
  bool blocking_;
  cuda::Target target_;
  cudaStream_t side_ = nullptr;  // of copies beside the stream
  AlignedBytes products_;
  std::unique_ptr<cuda::Blas> blas_;
  cuda::LinearResources resources_;
  std::unique_ptr<cuda::DeviceSampler> sampler_;

  // The first is held shared while a thread waits for the stream and alone while one records; then the second, of
  // memory and copies, which several threads may want while a model loads. What is recorded may copy.
  std::shared_mutex recording_;
  std::recursive_mutex mutex_;
  std::atomic<std::thread::id> recorder_ = std::thread::id();
  cudaError_t error_ = cudaSuccess;
  const char* failed_ = "";
};

}  // namespace

absl::StatusOr<std::unique_ptr<Device>> OpenCudaDevice(const DeviceOptions& options) {
  int count = 0;
  if (const cudaError_t error = cudaGetDeviceCount(&count); error != cudaSuccess || count == 0) {
    return absl::NotFoundError(
        absl::StrCat("no CUDA device: ", error == cudaSuccess ? "there is none" : cudaGetErrorString(error),
                     "; is the driver installed, and, in a container, the GPU passed to it?"));
  }
  if (options.index < 0 || options.index >= count) {
    return absl::NotFoundError(
        absl::StrCat("no CUDA device ", options.index, ": there are ", count, ", counted from 0"));
  }
  cudaDeviceProp properties;
  if (const cudaError_t error = cudaGetDeviceProperties(&properties, options.index); error != cudaSuccess) {
    return absl::NotFoundError(absl::StrCat("CUDA device ", options.index, ": ", cudaGetErrorString(error)));
  }
  DeviceInfo info{.name = properties.name,
                  .index = options.index,
                  .compute_capability = 10 * properties.major + properties.minor,
                  .multiprocessors = properties.multiProcessorCount,
                  .shared_bytes_per_block = static_cast<int64_t>(properties.sharedMemPerBlockOptin),
                  .total_bytes = static_cast<int64_t>(properties.totalGlobalMem)};
  if (info.compute_capability < kLeastCapability) {
    return absl::FailedPreconditionError(absl::StrCat(info.name, " has compute capability ", properties.major, ".",
                                                      properties.minor, ", the kernels need 8.0 or newer"));
  }
  auto device = std::make_unique<CudaDevice>(std::move(info), options.blocking);
  if (absl::Status status = device->Start(); !status.ok()) return status;
  return device;
}

}  // namespace palimpsest
