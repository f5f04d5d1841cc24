// float16 <-> float32, in integer arithmetic that every processor has, but where all have better.
#pragma once
#include <stddef.h>
#include <stdint.h>

namespace edgekit {

inline void to_float(const uint16_t* in, size_t count, float* out) {
#if defined(__aarch64__)
  for (size_t i = 0; i < count; ++i) {
    __fp16 value;
    __builtin_memcpy(&value, in + i, sizeof value);
    out[i] = value;
  }
#else
  for (size_t i = 0; i < count; ++i) {
    const uint32_t magnitude = in[i] & 0x7FFFu, sign = (in[i] & 0x8000u) << 16;
    uint32_t bits = magnitude << 13;
    float value;
    __builtin_memcpy(&value, &bits, sizeof value);
    value *= 0x1p112f;  // from float16's exponent bias to float32's; exact, subnormal numbers included
    __builtin_memcpy(&bits, &value, sizeof bits);
    bits = (magnitude >= 0x7C00u ? magnitude << 13 | 0x7F800000u : bits) | sign;
    __builtin_memcpy(out + i, &bits, sizeof bits);
  }
#endif
}

// To nearest, ties to even; beyond 65504 to infinity.
inline void to_half(const float* in, size_t count, uint16_t* out) {
  for (size_t i = 0; i < count; ++i) {
    uint32_t bits;
    __builtin_memcpy(&bits, in + i, sizeof bits);
    const uint32_t sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7FFFFFFFu;
    uint32_t half;
    if (magnitude >= 0x47800000u) {  // 65536 and more
      half = magnitude > 0x7F800000u ? 0x7E00u : 0x7C00u;
    } else if (magnitude < 0x38800000u) {  // below 2^-14: counted in units of 2^-24 by adding 0.5
      float value;
      __builtin_memcpy(&value, &magnitude, sizeof value);
      value += 0.5f;
      __builtin_memcpy(&half, &value, sizeof half);
      half -= 0x3F000000u;
    } else {
      half = (magnitude + 0xFFFu + (magnitude >> 13 & 1u) - 0x38000000u) >> 13;
    }
    out[i] = static_cast<uint16_t>(half | sign);
  }
}

}  // namespace edgekit
