// Rounding of activations for weights in blocks, included after floats.h by files of instruction sets.
#pragma once
#include "floats.h"

namespace edgekit {
namespace {

// Activations of one block, in order, to the planes of kInt4 from element `first` of a row on.
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

bool quantize_blocks(const float* x, size_t count, size_t block, bool steps_each, Format format, int32_t zero,
                     int8_t* codes, float* steps, int32_t* corrections) {
  float inverse = 0, step = 0;
  for (size_t start = 0; start < count; start += block, ++steps, ++corrections) {
    const size_t left = count - start < block ? count - start : block;
    if (steps_each || start == 0) {
      const uint32_t bits = largest_bits(x + start, steps_each ? left : count);
      if (bits >= kInfinity) return false;
      set_step(bits, &inverse, &step);
    }
    int8_t ordered[kMostBlock];
    int32_t sum = 0;
    for (size_t i = 0; i < left; ++i) {
      const int32_t code = rounded(x[start + i], inverse);
      sum += code;
      ordered[i] = static_cast<int8_t>(code);
    }
    for (size_t i = left; i < block; ++i) ordered[i] = 0;
    if (format == kInt4) {
      spread(ordered, block, start, codes);
    } else if (format == kTernary) {
      to_planes(ordered, codes + start);
    } else {
      __builtin_memcpy(codes + start, ordered, block);
    }
    *steps = step;
    *corrections = -zero * sum;
  }
  return true;
}

}  // namespace
}  // namespace edgekit
