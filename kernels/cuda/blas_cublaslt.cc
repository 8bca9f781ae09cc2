#include <cublasLt.h>

#include <algorithm>
#include <map>
#include <span>
#include <tuple>

#include "kernels/cuda/blas.h"

namespace palimpsest::cuda {
namespace {

// Rows that the choice of a kernel is made for: a prefill's.
constexpr int64_t kTypicalRows = 2048;
// Of the library's first choices for that many, the one that is taken must be able to do these numbers as well: tiles
// that are just full, one row more, one less, and the most that a pass may have.
constexpr int64_t kRowLadder[] = {1,  2,  7,   8,   15,  16,  17,  31,   33,   63,
                                  64, 65, 127, 129, 255, 256, 257, 1000, 4096, 16384};
constexpr int kCandidates = 8;

cudaError_t ErrorOf(cublasStatus_t status) {
  switch (status) {
    case CUBLAS_STATUS_SUCCESS:
      return cudaSuccess;
    case CUBLAS_STATUS_ALLOC_FAILED:
      return cudaErrorMemoryAllocation;
    case CUBLAS_STATUS_NOT_SUPPORTED:
      return cudaErrorNotSupported;
    case CUBLAS_STATUS_EXECUTION_FAILED:
      return cudaErrorLaunchFailure;
    default:
      return cudaErrorUnknown;
  }
}

// cuBLASLt's descriptors, released with the scope.
template <typename Handle, cublasStatus_t (*kDestroy)(Handle)>
class Owned {
 public:
  Owned() = default;
  Owned(const Owned&) = delete;
  Owned& operator=(const Owned&) = delete;
  ~Owned() {
    if (handle_ != nullptr) kDestroy(handle_);
  }
  Handle* address() { return &handle_; }
  Handle get() const { return handle_; }

 private:
  Handle handle_ = nullptr;
};
using Operation = Owned<cublasLtMatmulDesc_t, cublasLtMatmulDescDestroy>;
using Layout = Owned<cublasLtMatrixLayout_t, cublasLtMatrixLayoutDestroy>;
using Preference = Owned<cublasLtMatmulPreference_t, cublasLtMatmulPreferenceDestroy>;

#define PALIMPSEST_RETURN_IF_CUBLAS_ERROR(call) \
  if (const cublasStatus_t status = (call); status != CUBLAS_STATUS_SUCCESS) return status

// The library thinks in columns: y^T [out, rows] = W x^T, where W, row by row, is the transpose of what it sees.
struct Plan {
  Operation operation;
  Layout weights, x, y;

  cublasStatus_t Make(const Product& p, int64_t rows) {
    const cudaDataType_t type = p.dtype == DType::kBF16 ? CUDA_R_16BF : CUDA_R_32F;
    const cublasOperation_t transpose = CUBLAS_OP_T;
    PALIMPSEST_RETURN_IF_CUBLAS_ERROR(cublasLtMatmulDescCreate(operation.address(), CUBLAS_COMPUTE_32F, CUDA_R_32F));
    PALIMPSEST_RETURN_IF_CUBLAS_ERROR(
        cublasLtMatmulDescSetAttribute(operation.get(), CUBLASLT_MATMUL_DESC_TRANSA, &transpose, sizeof transpose));
    if (p.bias != nullptr) {
      const cublasLtEpilogue_t epilogue = CUBLASLT_EPILOGUE_BIAS;
      const void* const bias = p.bias;
      const cudaDataType_t bias_type = CUDA_R_32F;
      PALIMPSEST_RETURN_IF_CUBLAS_ERROR(
          cublasLtMatmulDescSetAttribute(operation.get(), CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue, sizeof epilogue));
      PALIMPSEST_RETURN_IF_CUBLAS_ERROR(
          cublasLtMatmulDescSetAttribute(operation.get(), CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias, sizeof bias));
      PALIMPSEST_RETURN_IF_CUBLAS_ERROR(cublasLtMatmulDescSetAttribute(
          operation.get(), CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, &bias_type, sizeof bias_type));
    }
    PALIMPSEST_RETURN_IF_CUBLAS_ERROR(cublasLtMatrixLayoutCreate(weights.address(), type, p.in, p.out, p.ldw));
    PALIMPSEST_RETURN_IF_CUBLAS_ERROR(cublasLtMatrixLayoutCreate(x.address(), type, p.in, rows, p.ldx));
    return cublasLtMatrixLayoutCreate(y.address(), CUDA_R_32F, p.out, rows, p.ldy);
  }
};

class CublasLt : public Blas {
 public:
  CublasLt(std::byte* workspace, int64_t workspace_bytes) : workspace_(workspace), workspace_bytes_(workspace_bytes) {}
  ~CublasLt() override {
    if (handle_ != nullptr) cublasLtDestroy(handle_);
  }
  bool Start() { return cublasLtCreate(&handle_) == CUBLAS_STATUS_SUCCESS; }

  bool Supports(const Product& p) override {
    const cublasLtMatmulAlgo_t* algorithm = nullptr;
    return Find(p, &algorithm) == CUBLAS_STATUS_SUCCESS;
  }

  cudaError_t Multiply(const Product& p, cudaStream_t stream) override { return ErrorOf(MultiplyOrFail(p, stream)); }

 private:
  cublasStatus_t MultiplyOrFail(const Product& p, cudaStream_t stream) {
    const cublasLtMatmulAlgo_t* algorithm = nullptr;
    PALIMPSEST_RETURN_IF_CUBLAS_ERROR(Find(p, &algorithm));
    Plan plan;
    PALIMPSEST_RETURN_IF_CUBLAS_ERROR(plan.Make(p, p.rows));
    const float one = 1.0f, beta = p.accumulate ? 1.0f : 0.0f;
    return cublasLtMatmul(handle_, plan.operation.get(), &one, p.weights, plan.weights.get(), p.x, plan.x.get(), &beta,
                          p.y, plan.y.get(), p.y, plan.y.get(), algorithm, workspace_,
                          static_cast<size_t>(workspace_bytes_), stream);
  }

  // The kernel for this matrix, chosen once: without a reduction over parts of `in`, which would be cut by the rows.
  cublasStatus_t Find(const Product& p, const cublasLtMatmulAlgo_t** algorithm) {
    const Key key{p.dtype, p.out, p.in, p.ldw, p.ldx, p.ldy, p.bias != nullptr};
    const auto known = algorithms_.find(key);
    if (known != algorithms_.end()) {
      *algorithm = &known->second;
      return CUBLAS_STATUS_SUCCESS;
    }
    Plan plan;
    PALIMPSEST_RETURN_IF_CUBLAS_ERROR(plan.Make(p, kTypicalRows));
    Preference preference;
    PALIMPSEST_RETURN_IF_CUBLAS_ERROR(cublasLtMatmulPreferenceCreate(preference.address()));
    const auto workspace_bytes = static_cast<uint64_t>(workspace_bytes_);
    const uint32_t no_reduction = CUBLASLT_REDUCTION_SCHEME_NONE;
    PALIMPSEST_RETURN_IF_CUBLAS_ERROR(cublasLtMatmulPreferenceSetAttribute(
        preference.get(), CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace_bytes, sizeof workspace_bytes));
    PALIMPSEST_RETURN_IF_CUBLAS_ERROR(cublasLtMatmulPreferenceSetAttribute(
        preference.get(), CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &no_reduction, sizeof no_reduction));
    // The library would count on 256 bytes; blas.h promises this much.
    const uint32_t alignment = 16;
    for (const cublasLtMatmulPreferenceAttributes_t attribute :
         {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
          CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES}) {
      PALIMPSEST_RETURN_IF_CUBLAS_ERROR(
          cublasLtMatmulPreferenceSetAttribute(preference.get(), attribute, &alignment, sizeof alignment));
    }
    cublasLtMatmulHeuristicResult_t results[kCandidates] = {};
    int found = 0;
    PALIMPSEST_RETURN_IF_CUBLAS_ERROR(cublasLtMatmulAlgoGetHeuristic(handle_, plan.operation.get(), plan.weights.get(),
                                                                     plan.x.get(), plan.y.get(), plan.y.get(),
                                                                     preference.get(), kCandidates, results, &found));
    for (const cublasLtMatmulHeuristicResult_t& result : std::span(results).first(found)) {
      if (result.state != CUBLAS_STATUS_SUCCESS || !DoesAnyRows(p, result.algo)) continue;
      *algorithm = &algorithms_.emplace(key, result.algo).first->second;
      return CUBLAS_STATUS_SUCCESS;
    }
    return CUBLAS_STATUS_NOT_SUPPORTED;
  }

  // A kernel that refused a row count would do so in the middle of a forward pass.
  bool DoesAnyRows(const Product& p, const cublasLtMatmulAlgo_t& algorithm) const {
    return std::ranges::all_of(kRowLadder, [&](int64_t rows) {
      Plan plan;
      cublasLtMatmulHeuristicResult_t result{};
      return plan.Make(p, rows) == CUBLAS_STATUS_SUCCESS &&
             cublasLtMatmulAlgoCheck(handle_, plan.operation.get(), plan.weights.get(), plan.x.get(), plan.y.get(),
                                     plan.y.get(), &algorithm, &result) == CUBLAS_STATUS_SUCCESS &&
             result.workspaceSize <= static_cast<size_t>(workspace_bytes_);
    });
  }

  using Key = std::tuple<DType, int64_t, int64_t, int64_t, int64_t, int64_t, bool>;

  std::byte* const workspace_;
  const int64_t workspace_bytes_;
  cublasLtHandle_t handle_ = nullptr;
  std::map<Key, cublasLtMatmulAlgo_t> algorithms_;
};

}  // namespace

std::unique_ptr<Blas> Blas::Create(std::byte* workspace, int64_t workspace_bytes) {
  auto blas = std::make_unique<CublasLt>(workspace, workspace_bytes);
  if (!blas->Start()) return nullptr;
  return blas;
}

}  // namespace palimpsest::cuda
