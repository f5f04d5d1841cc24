// Rounding of activations for 4-bit weights, included after floats.h by files of instruction sets.
#pragma once
#include "floats.h"

namespace edgekit {
namespace {

// Activations of one block, in order, to their planes from element `first` of a row on.
inline void spread(const int8_t* ordered, size_t count, size_t first, int8_t* codes) {
  for (size_t i = 0; i < count; i += kInt4Span) {
    const size_t at = first + i, run = count - i < kInt4Span ? count - i : kInt4Span;
    int8_t* even = codes + (at & ~(kInt4Span - 1)) + (at & (kInt4Span - 1)) / 2;
    int8_t* odd = even + kInt4Span / 2;
    for (size_t j = 0; j < run / 2; ++j) {
      even[j] = ordered[i + 2 * j];
      odd[j] = ordered[i + 2 * j + 1];
    }
  }
}

bool quantize_int4(const float* x, size_t count, size_t block, bool steps_each, int8_t* codes, float* steps,
                   int32_t* corrections) {
  float inverse = 0, step = 0;
  for (size_t start = 0; start < count; start += block, ++steps, ++corrections) {
    const size_t left = count - start < block ? count - start : block;
    if (steps_each || start == 0) {
      const uint32_t bits = largest_bits(x + start, steps_each ? left : count);
      if (bits >= kInfinity) return false;
      set_step(bits, &inverse, &step);
    }
    int8_t ordered[kMostInt4Block];
    int32_t sum = 0;
    for (size_t i = 0; i < left; ++i) {
      const int32_t code = rounded(x[start + i], inverse);
      sum += code;
      ordered[i] = static_cast<int8_t>(code);
    }
    for (size_t i = left; i < block; ++i) ordered[i] = 0;
    spread(ordered, block, start, codes);
    *steps = step;
    *corrections = -8 * sum;
  }
  return true;
}

}  // namespace
}  // namespace edgekit
