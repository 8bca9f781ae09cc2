#include "kernels/cuda/blas.h"
#include "kernels/cuda/emulator/memory.h"

namespace palimpsest::cuda {
namespace {

float ElementAt(DType dtype, const void* data, int64_t i) {
  return dtype == DType::kBF16 ? FloatFromBF16(static_cast<const BF16*>(data)[i]) : static_cast<const float*>(data)[i];
}

class EmulatedBlas : public Blas {
 public:
  bool Supports(const Product&) override { return true; }

  cudaError_t Multiply(const Product& product, cudaStream_t stream) override {
    const int64_t size = SizeOf(product.dtype);
    for (const int64_t address :
         {reinterpret_cast<int64_t>(product.weights), reinterpret_cast<int64_t>(product.x),
          reinterpret_cast<int64_t>(product.y), product.ldw * size, product.ldx * size, product.ldy * 4}) {
      if (address % 16 != 0) return cudaErrorInvalidValue;
    }
    emulator::RequireOnDevice(product);
    emulator::Enqueue(stream, [p = product] {
      for (int64_t r = 0; r < p.rows; ++r) {
        for (int64_t o = 0; o < p.out; ++o) {
          float sum = 0.0f;
          for (int64_t i = 0; i < p.in; ++i) {
            sum = std::fma(ElementAt(p.dtype, p.x, r * p.ldx + i), ElementAt(p.dtype, p.weights, o * p.ldw + i), sum);
          }
          float& y = p.y[r * p.ldy + o];
          y = (p.accumulate ? y : 0.0f) + sum + (p.bias == nullptr ? 0.0f : p.bias[o]);
        }
      }
    });
    return cudaSuccess;
  }
};

}  // namespace

std::unique_ptr<Blas> Blas::Create(std::byte*, int64_t) { return std::make_unique<EmulatedBlas>(); }

}  // namespace palimpsest::cuda
