// What the parts of one product share, for product.cpp and product_blocks.cpp.
#pragma once
#include "arguments.h"
#include "half.h"

namespace edgekit {

constexpr size_t kAlignment = 64;

// One call of the operator: what its parts share; x is rounded to codes before them. Only `finite` and `intact` are
// written by them.
struct Call {
  const Kernels& kernels;
  Format format;
  const Arguments& a;
  size_t stride;  // bytes from one row of codes to the next
  size_t pieces;  // of a row of codes: 1, or one a block
  float* floats;  // X as float32 where it is float16
  int8_t* codes;
  float* steps;
  int32_t* corrections;
  bool finite = true;
  bool intact = true;  // sparse rows fit their codes

  const float* row(size_t t) const { return a.half ? floats + t * a.k : static_cast<const float*>(a.x) + t * a.k; }
  Format dense() const { return is_sparse(format) ? kInt8 : format; }  // of panels

  // One token needs no panel: a sparse row is multiplied while it is read.
  bool sparse_rows() const { return is_sparse(format) && a.m == 1; }
  int32_t zero() const {
    if (format == kTernary) return 1;
    if (format == kInt4) return 8;
    return format == kSparse4 && sparse_rows() ? kernels.sparse4_zero : kernels.int8_zero;
  }
};

// Where a part's sums for a token are made: in Y itself, or where Y is float16 in `local`.
inline float* destination(const Arguments& a, size_t t, size_t first, float* local) {
  return a.half ? local : static_cast<float*>(a.y) + t * a.n + first;
}

// Adds the bias, and narrows where Y is float16.
inline void complete(const Arguments& a, size_t t, size_t first, size_t rows, float* y) {
  if (a.bias != nullptr) {
    for (size_t r = 0; r < rows; ++r) y[r] += a.bias[first + r];
  }
  if (a.half) to_half(y, rows, static_cast<uint16_t*>(a.y) + t * a.n + first);
}

// Rows of a W whose blocks have a scale each, from 32 * `part` on, for all tokens; `data` is a Call.
void block_part(void* data, size_t part);

}  // namespace edgekit
