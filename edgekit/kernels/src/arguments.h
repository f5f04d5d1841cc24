// The operator's inputs, read and checked.
#pragma once
#include "kernels.h"
#include "ort_abi.h"

namespace edgekit {

constexpr int64_t kMostRows = int64_t{1} << 31;      // of X and of W
constexpr int64_t kMostTernaryK = int64_t{1} << 22;  // sums of codes moved up by 6 bits stay below 2^31
constexpr int64_t kMostInt8K = int64_t{1} << 17;     // 127 * 128 * K stays below 2^31

struct Attributes {
  Format format;  // of SparseMatMul: by its attribute bits
  bool half;      // X and Y are float16
  int64_t k, n;
  size_t block;     // codes of a block of W: the attribute block_size, else 128
  bool each_block;  // activations are rounded per block, not per row
};

struct Arguments {
  size_t m, n, k, block, blocks;
  bool half;
  bool each;         // step or scale changes from block to block
  bool steps_each;   // the step does
  bool one_scale;    // one for the whole tensor
  bool scales_each;  // one a block
  const void* x;
  const uint8_t* w;
  size_t row_bytes;  // of a dense W
  size_t w_bytes;
  const float* scales;          // or
  const uint16_t* half_scales;  // those of kInt4 in float16, else null
  const float* bias;            // or null
  void* y;
};

inline size_t smaller(size_t a, size_t b) { return a < b ? a : b; }

// count / width rounded up, for powers of two: 32-bit ARM divides by nothing else without a library.
inline size_t parts(size_t count, size_t width) {
  while (width > 1) count = (count + 1) / 2, width /= 2;
  return count;
}

const char* operator_name(Format format);

// Where a sparse W's first row begins: behind the places of its `n` rows and of their end.
constexpr size_t sparse_header(size_t n) { return (n + 1) * sizeof(uint32_t); }

// Reads K, N, activation_block_size and what else the operator has. Returns null or an error.
OrtStatus* read_attributes(const Api& api, const OrtKernelInfo* info, Format format, bool half, Attributes* out);

// Reads and checks inputs and makes the output. Returns null or an error.
OrtStatus* read_arguments(const Api& api, OrtKernelContext* context, const Attributes& attributes, Arguments* out);

}  // namespace edgekit
