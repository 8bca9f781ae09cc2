// Element types and their conversion.
#pragma once

#include <bit>
#include <cstdint>
#include <string_view>

namespace palimpsest {

enum class DType : uint8_t { kF32, kBF16, kF16, kI32, kI64 };

constexpr int64_t SizeOf(DType dtype) {
  switch (dtype) {
    case DType::kBF16:
    case DType::kF16:
      return 2;
    case DType::kF32:
    case DType::kI32:
      return 4;
    case DType::kI64:
      return 8;
  }
  return 0;
}

constexpr std::string_view NameOf(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return "f32";
    case DType::kBF16:
      return "bf16";
    case DType::kF16:
      return "f16";
    case DType::kI32:
      return "i32";
    case DType::kI64:
      return "i64";
  }
  return "?";
}

// bfloat16 as raw bits: the upper half of a float32.
using BF16 = uint16_t;

constexpr float FloatFromBF16(BF16 bits) { return std::bit_cast<float>(uint32_t{bits} << 16); }

// Rounds to nearest, ties to even; NaN stays NaN.
constexpr BF16 BF16FromFloat(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  if ((bits & 0x7FFFFFFF) > 0x7F800000) return static_cast<BF16>((bits >> 16) | 0x40);
  return static_cast<BF16>((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
}

// For who is written for either.
constexpr float FloatFrom(float value) { return value; }
constexpr float FloatFrom(BF16 bits) { return FloatFromBF16(bits); }
constexpr void PutFloat(float value, float& to) { to = value; }
constexpr void PutFloat(float value, BF16& to) { to = BF16FromFloat(value); }

// IEEE binary16 bits to float, exactly.
constexpr float FloatFromF16(uint16_t bits) {
  const uint32_t sign = uint32_t{bits & 0x8000u} << 16;
  const uint32_t exponent = (bits >> 10) & 0x1F;
  const uint32_t mantissa = bits & 0x3FF;
  if (exponent == 0x1F) return std::bit_cast<float>(sign | 0x7F800000 | (mantissa << 13));
  if (exponent != 0) return std::bit_cast<float>(sign | ((exponent + 112) << 23) | (mantissa << 13));
  const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
  return sign != 0 ? -magnitude : magnitude;
}

}  // namespace palimpsest
