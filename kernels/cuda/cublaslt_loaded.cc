// cuBLASLt's functions, those that are used, under their own names: each calls the one of the library that is loaded
// when the first of them is called.
//
// Linked as usual, the library would be in every process of a build with CUDA, on machines without a GPU as well: half
// a gigabyte of address space, and 94 kB for each thread, which glibc takes out of the thread's stack, so that threads
// with small stacks cannot be made. What is loaded later has its share elsewhere.
#include <cublasLt.h>
#include <dlfcn.h>

#include <string>

namespace {

// Null: there is no such library, or it has no such function.
void* FunctionOf(const char* name) {
  static void* const library =
      dlopen(("libcublasLt.so." + std::to_string(CUBLAS_VER_MAJOR)).c_str(), RTLD_NOW | RTLD_LOCAL);
  return library == nullptr ? nullptr : dlsym(library, name);
}

}  // namespace

#define PALIMPSEST_FORWARD(name, parameters, arguments)                                \
  cublasStatus_t name parameters {                                                     \
    static const auto function = reinterpret_cast<decltype(&name)>(FunctionOf(#name)); \
    return function == nullptr ? CUBLAS_STATUS_NOT_INITIALIZED : function arguments;   \
  }

PALIMPSEST_FORWARD(cublasLtCreate, (cublasLtHandle_t * handle), (handle))
PALIMPSEST_FORWARD(cublasLtDestroy, (cublasLtHandle_t handle), (handle))
PALIMPSEST_FORWARD(cublasLtMatmul,
                   (cublasLtHandle_t handle, cublasLtMatmulDesc_t operation, const void* alpha, const void* a,
                    cublasLtMatrixLayout_t a_layout, const void* b, cublasLtMatrixLayout_t b_layout, const void* beta,
                    const void* c, cublasLtMatrixLayout_t c_layout, void* d, cublasLtMatrixLayout_t d_layout,
                    const cublasLtMatmulAlgo_t* algorithm, void* workspace, size_t workspace_bytes,
                    cudaStream_t stream),
                   (handle, operation, alpha, a, a_layout, b, b_layout, beta, c, c_layout, d, d_layout, algorithm,
                    workspace, workspace_bytes, stream))
PALIMPSEST_FORWARD(cublasLtMatmulAlgoCheck,
                   (cublasLtHandle_t handle, cublasLtMatmulDesc_t operation, cublasLtMatrixLayout_t a,
                    cublasLtMatrixLayout_t b, cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                    const cublasLtMatmulAlgo_t* algorithm, cublasLtMatmulHeuristicResult_t* result),
                   (handle, operation, a, b, c, d, algorithm, result))
PALIMPSEST_FORWARD(cublasLtMatmulAlgoGetHeuristic,
                   (cublasLtHandle_t handle, cublasLtMatmulDesc_t operation, cublasLtMatrixLayout_t a,
                    cublasLtMatrixLayout_t b, cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                    cublasLtMatmulPreference_t preference, int wanted, cublasLtMatmulHeuristicResult_t results[],
                    int* count),
                   (handle, operation, a, b, c, d, preference, wanted, results, count))
PALIMPSEST_FORWARD(cublasLtMatmulDescCreate,
                   (cublasLtMatmulDesc_t * operation, cublasComputeType_t compute, cudaDataType_t scale),
                   (operation, compute, scale))
PALIMPSEST_FORWARD(cublasLtMatmulDescDestroy, (cublasLtMatmulDesc_t operation), (operation))
PALIMPSEST_FORWARD(cublasLtMatmulDescSetAttribute,
                   (cublasLtMatmulDesc_t operation, cublasLtMatmulDescAttributes_t attribute, const void* value,
                    size_t bytes),
                   (operation, attribute, value, bytes))
PALIMPSEST_FORWARD(cublasLtMatmulPreferenceCreate, (cublasLtMatmulPreference_t * preference), (preference))
PALIMPSEST_FORWARD(cublasLtMatmulPreferenceDestroy, (cublasLtMatmulPreference_t preference), (preference))
PALIMPSEST_FORWARD(cublasLtMatmulPreferenceSetAttribute,
                   (cublasLtMatmulPreference_t preference, cublasLtMatmulPreferenceAttributes_t attribute,
                    const void* value, size_t bytes),
                   (preference, attribute, value, bytes))
PALIMPSEST_FORWARD(cublasLtMatrixLayoutCreate,
                   (cublasLtMatrixLayout_t * layout, cudaDataType type, uint64_t rows, uint64_t columns, int64_t ld),
                   (layout, type, rows, columns, ld))
PALIMPSEST_FORWARD(cublasLtMatrixLayoutDestroy, (cublasLtMatrixLayout_t layout), (layout))
