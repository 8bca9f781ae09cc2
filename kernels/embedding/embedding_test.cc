#include "kernels/embedding/embedding.h"

#include <cstring>
#include <vector>

#include "kernels/common/op_testing.h"

namespace palimpsest {
namespace {

constexpr int32_t kVocabulary = 97;

// A table of random bit patterns (subnormals, infinities and NaN among them) and what each value is as a float.
struct Table {
  Table(DType dtype, int64_t dim) : dtype(dtype) {
    std::mt19937 random(7);
    for (int64_t i = 0; i < kVocabulary * dim; ++i) {
      if (dtype == DType::kF32) {
        const float value = std::normal_distribution<float>()(random);
        const auto* begin = reinterpret_cast<const uint8_t*>(&value);
        bytes.insert(bytes.end(), begin, begin + sizeof(value));
        floats.push_back(value);
      } else {
        const auto bits = static_cast<uint16_t>(random());
        const auto* begin = reinterpret_cast<const uint8_t*>(&bits);
        bytes.insert(bytes.end(), begin, begin + sizeof(bits));
        floats.push_back(dtype == DType::kBF16 ? FloatFromBF16(bits) : FloatFromF16(bits));
      }
    }
  }

  DType dtype;
  std::vector<uint8_t> bytes;
  std::vector<float> floats;
};

TEST(EmbeddingTest, CopiesTheRowOfEachTokenWidened) {
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF16}) {
    for (const int32_t dim : {1, 5, 64, 203}) {
      for (const int32_t rows : {0, 1, 3, 700}) {
        SCOPED_TRACE(testing::Message() << NameOf(dtype) << " dim " << dim << " rows " << rows);
        const Table table(dtype, dim);
        std::vector<int32_t> tokens;
        std::vector<float> expected;
        for (int32_t r = 0; r < rows; ++r) {
          tokens.push_back(r == 0 ? kVocabulary - 1 : r * 31 % kVocabulary);
          const float* row = table.floats.data() + tokens.back() * dim;
          expected.insert(expected.end(), row, row + dim);
        }
        for (int threads = 1; threads <= 4; ++threads) {
          ThreadPool pool(threads);
          std::vector<float> y(rows * dim, kNaN);
          Embedding(On(pool), {.rows = rows,
                               .dim = dim,
                               .tokens = tokens.data(),
                               .dtype = dtype,
                               .table = table.bytes.data(),
                               .y = y.data()});
          EXPECT_TRUE(SameBits(y, expected)) << threads << " threads";
        }
      }
    }
  }
}

TEST(EmbeddingTest, HalfPrecisionIsWidenedExactly) {
  // Bit patterns from IEEE 754: 1, smallest subnormal, largest subnormal, largest finite, -2, infinity.
  const std::vector<uint16_t> table = {0x3C00, 0x0001, 0x03FF, 0x7BFF, 0xC000, 0x7C00};
  const std::vector<float> expected = {1.0f, 0x1p-24f, 0x3FFp-24f, 65504.0f, -2.0f, kInfinity};
  const std::vector<int32_t> tokens = {0, 1, 2, 3, 4, 5};
  ThreadPool pool(1);
  std::vector<float> y(6, kNaN);
  Embedding(On(pool),
            {.rows = 6, .dim = 1, .tokens = tokens.data(), .dtype = DType::kF16, .table = table.data(), .y = y.data()});
  EXPECT_TRUE(SameBits(y, expected));
}

TEST(EmbeddingTest, ScalesTheRow) {
  const Table table(DType::kF32, 5);
  const std::vector<int32_t> tokens = {3, 0};
  ThreadPool pool(1);
  std::vector<float> y(10, kNaN);
  Embedding(On(pool), {.rows = 2,
                       .dim = 5,
                       .tokens = tokens.data(),
                       .dtype = DType::kF32,
                       .table = table.bytes.data(),
                       .scale = 1.7f,
                       .y = y.data()});
  for (int64_t i = 0; i < 5; ++i) EXPECT_EQ(y[i], table.floats[15 + i] * 1.7f);
}

TEST(EmbeddingTest, AddsTheSinusoidOfThePosition) {
  const std::vector<int64_t> positions = {0, 7, 100000};
  const std::vector<float> frequencies = {1.0f, 0.03125f, 0.0001f};
  for (const int threads : {1, 3}) {
    ThreadPool pool(threads);
    std::vector<float> y(18, 0.5f);
    AddSinusoid(On(pool),
                {.rows = 3, .dim = 6, .frequencies = frequencies.data(), .positions = positions.data(), .y = y.data()});
    for (int64_t r = 0; r < 3; ++r) {
      for (int64_t j = 0; j < 3; ++j) {
        const double angle = static_cast<float>(positions[r]) * frequencies[j];
        EXPECT_NEAR(y[r * 6 + j], 0.5 + std::sin(angle), 2e-7);
        EXPECT_NEAR(y[r * 6 + 3 + j], 0.5 + std::cos(angle), 2e-7);
      }
    }
  }
}

}  // namespace
}  // namespace palimpsest
