#include <cublasLt.h>

#include "bench/device_peak.h"

namespace palimpsest::cuda {
namespace {

constexpr size_t kWorkspaceBytes = size_t{64} << 20;

class CublasPeak : public Peak {
 public:
  ~CublasPeak() override {
    if (y_layout_ != nullptr) cublasLtMatrixLayoutDestroy(y_layout_);
    if (layout_ != nullptr) cublasLtMatrixLayoutDestroy(layout_);
    if (operation_ != nullptr) cublasLtMatmulDescDestroy(operation_);
    if (handle_ != nullptr) cublasLtDestroy(handle_);
    cudaFree(workspace_);
  }

  bool Start(PeakProduct kind, int64_t n, const void* a, const void* b, float* y) {
    a_ = a;
    b_ = b;
    y_ = y;
    const bool bf16 = kind == PeakProduct::kBF16;
    const cudaDataType_t type = bf16 ? CUDA_R_16BF : CUDA_R_32F;
    const cublasOperation_t transpose = CUBLAS_OP_T;
    cublasLtMatmulPreference_t preference = nullptr;
    int found = 0;
    const bool started =
        cudaMalloc(&workspace_, kWorkspaceBytes) == cudaSuccess && Ok(cublasLtCreate(&handle_)) &&
        Ok(cublasLtMatmulDescCreate(&operation_, bf16 ? CUBLAS_COMPUTE_32F : CUBLAS_COMPUTE_32F_FAST_TF32,
                                    CUDA_R_32F)) &&
        Ok(cublasLtMatmulDescSetAttribute(operation_, CUBLASLT_MATMUL_DESC_TRANSA, &transpose, sizeof transpose)) &&
        Ok(cublasLtMatrixLayoutCreate(&layout_, type, n, n, n)) &&
        Ok(cublasLtMatrixLayoutCreate(&y_layout_, CUDA_R_32F, n, n, n)) &&
        Ok(cublasLtMatmulPreferenceCreate(&preference)) &&
        Ok(cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &kWorkspaceBytes,
                                                sizeof kWorkspaceBytes)) &&
        Ok(cublasLtMatmulAlgoGetHeuristic(handle_, operation_, layout_, layout_, y_layout_, y_layout_, preference, 1,
                                          &algorithm_, &found));
    if (preference != nullptr) cublasLtMatmulPreferenceDestroy(preference);
    return started && found > 0;
  }

  cudaError_t Multiply(cudaStream_t stream) override {
    const float one = 1.0f, zero = 0.0f;
    return Ok(cublasLtMatmul(handle_, operation_, &one, a_, layout_, b_, layout_, &zero, y_, y_layout_, y_, y_layout_,
                             &algorithm_.algo, workspace_, kWorkspaceBytes, stream))
               ? cudaSuccess
               : cudaErrorUnknown;
  }

 private:
  static bool Ok(cublasStatus_t status) { return status == CUBLAS_STATUS_SUCCESS; }

  const void* a_ = nullptr;
  const void* b_ = nullptr;
  float* y_ = nullptr;
  void* workspace_ = nullptr;
  cublasLtHandle_t handle_ = nullptr;
  cublasLtMatmulDesc_t operation_ = nullptr;
  cublasLtMatrixLayout_t layout_ = nullptr, y_layout_ = nullptr;
  cublasLtMatmulHeuristicResult_t algorithm_{};
};

}  // namespace

std::unique_ptr<Peak> MakePeakProduct(PeakProduct kind, int64_t n, const void* a, const void* b, float* y) {
  auto peak = std::make_unique<CublasPeak>();
  return peak->Start(kind, n, a, b, y) ? std::move(peak) : nullptr;
}

}  // namespace palimpsest::cuda
