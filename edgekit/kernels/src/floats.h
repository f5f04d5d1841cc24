// The arithmetic on floats, included by each instruction set's file between its EK_TARGET lines and vectorized by the
// compiler. Every operation is one IEEE float32 operation in a fixed order, so the results are the same bits
// everywhere.
#pragma once
#include "kernels.h"

namespace edgekit {
namespace {

constexpr uint32_t kMagnitude = 0x7FFFFFFF, kInfinity = 0x7F800000;
constexpr float kSmallest = 1e-30f;  // what an absmax counts as at least: 127 / absmax stays finite

// x + 1.5 * 2^23 holds the integer nearest to x (ties to even) in its low bits.
constexpr float kRounder = 12582912.0f;
constexpr int32_t kRounderBits = 0x4B400000;

inline uint32_t bits_of(float x) {
  uint32_t bits;
  __builtin_memcpy(&bits, &x, sizeof bits);
  return bits;
}

// The largest magnitude as bits, which order as the magnitudes do; NaN is above infinity.
inline uint32_t largest_bits(const float* x, size_t count) {
  uint32_t largest = 0;
  for (size_t i = 0; i < count; ++i) {
    const uint32_t bits = bits_of(x[i]) & kMagnitude;
    largest = bits > largest ? bits : largest;
  }
  return largest;
}

// The step of so large an absmax, and what activations are multiplied by before they are rounded.
inline void set_step(uint32_t largest_as_bits, float* inverse, float* step) {
  float largest;
  __builtin_memcpy(&largest, &largest_as_bits, sizeof largest);
  largest = largest < kSmallest ? kSmallest : largest;
  *inverse = 127.0f / largest;
  *step = largest / 127.0f;
}

inline int32_t rounded(float x, float inverse) {
  return static_cast<int32_t>(bits_of(x * inverse + kRounder)) - kRounderBits;
}

// A block in order to the planes in which kTernary weights meet it.
inline void to_planes(const int8_t* ordered, int8_t* codes) {
  uint32_t words[kPlane];
  __builtin_memcpy(words, ordered, kBlock);
#pragma GCC unroll 4
  for (size_t f = 0; f < 4; ++f) {
    for (size_t j = 0; j < kPlane; ++j) codes[f * kPlane + j] = static_cast<int8_t>(words[j] >> (8 * f));
  }
}

inline int32_t round_block(const float* x, float inverse, bool planes, int8_t* codes) {
  int8_t ordered[kBlock];
  int32_t sum = 0;
  for (size_t i = 0; i < kBlock; ++i) {
    const int32_t code = rounded(x[i], inverse);
    sum += code;
    ordered[i] = static_cast<int8_t>(code);
  }
  if (planes) {
    to_planes(ordered, codes);
  } else {
    __builtin_memcpy(codes, ordered, kBlock);
  }
  return sum;
}

bool quantize(const float* x, size_t count, bool steps_each, bool each, bool planes, int8_t* codes, float* steps,
              int32_t* sums) {
  float inverse = 0, step = 0;
  for (size_t start = 0; start < count; start += kBlock) {
    const size_t left = count - start < kBlock ? count - start : kBlock;
    if (steps_each || start == 0) {
      const uint32_t bits = largest_bits(x + start, steps_each ? left : count);
      if (bits >= kInfinity) return false;
      set_step(bits, &inverse, &step);
    }
    float padded[kBlock];
    const float* block = x + start;
    if (left < kBlock) {
      for (size_t i = 0; i < kBlock; ++i) padded[i] = i < left ? block[i] : 0.0f;
      block = padded;
    }
    const size_t piece = each ? start / kBlock : 0;
    const int32_t before = each || start == 0 ? 0 : sums[piece];
    sums[piece] = before + round_block(block, inverse, planes, codes + start);
    steps[piece] = step;
  }
  return true;
}

inline float difference(int32_t sum, int32_t correction) {
  return static_cast<float>(static_cast<int32_t>(static_cast<uint32_t>(sum) - static_cast<uint32_t>(correction)));
}

template <bool Add>
inline void finish_piece(const int32_t* sums, int32_t correction, float step, const float* scales, bool one_scale,
                         size_t rows, float* y) {
  if (one_scale) {
    const float factor = step * scales[0];
    for (size_t r = 0; r < rows; ++r) y[r] = (Add ? y[r] : 0.0f) + difference(sums[r], correction) * factor;
  } else {
    for (size_t r = 0; r < rows; ++r) {
      y[r] = (Add ? y[r] : 0.0f) + difference(sums[r], correction) * (step * scales[r]);
    }
  }
}

void finish(const int32_t* sums, size_t sum_stride, size_t pieces, const int32_t* corrections, const float* steps,
            const float* scales, bool one_scale, size_t rows, bool add, float* y) {
  for (size_t p = 0; p < pieces; ++p) {
    const int32_t* own = sums + p * sum_stride;
    if (add || p > 0) {
      finish_piece<true>(own, corrections[p], steps[p], scales, one_scale, rows, y);
    } else {
      finish_piece<false>(own, corrections[p], steps[p], scales, one_scale, rows, y);
    }
  }
}

}  // namespace
}  // namespace edgekit
