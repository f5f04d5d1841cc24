// What the parts of one product share, for product.cpp and product_blocks.cpp.
#pragma once
#include "arguments.h"
#include "half.h"

namespace edgekit {

constexpr size_t kAlignment = 64;
constexpr size_t kMostBatches = 16;    // parts for threads: several each, so that a busy core does fewer of them
constexpr size_t kBatchBytes = 65536;  // weights read in a part at least: less costs more to hand out than to do
constexpr size_t kParallelX = 32768;   // elements of X from which their rounding is worth sharing out

inline size_t aligned(size_t bytes) { return (bytes + kAlignment - 1) & ~(kAlignment - 1); }

// How many batches to offer the threads, never a spin or a thread of our own: for so many bytes of weights, each of
// them read for four tokens at most, and for the rounding of X.
inline size_t product_batches(size_t bytes) {
  return bytes < kBatchBytes ? 1 : smaller(bytes / kBatchBytes, kMostBatches);
}
inline size_t round_batches(size_t rows, size_t k) { return rows * k < kParallelX ? 1 : smaller(rows, kMostBatches); }

// What kernels take a code's zero for where it is a weight of a dense format.
inline int32_t zero_of(const Kernels& kernels, Format format) {
  return format == kTernary ? 1 : format == kInt4 ? 8 : kernels.int8_zero;
}

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
  int32_t zero() const { return format == kSparse4 && sparse_rows() ? kernels.sparse4_zero : zero_of(kernels, format); }
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

// Rows of W whose products an instruction set makes together, and where: in whole groups, of which the last one begins
// early enough to be whole. Fewer rows than a group are scalar's.
void multiply_rows(const BlockKernels& kernels, const BlockProduct& product, size_t n, size_t first, size_t rows,
                   size_t from, size_t tokens, float* y);

}  // namespace edgekit
