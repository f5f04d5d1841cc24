// ExpertMatMul's attributes and inputs, read and checked: nothing past experts_arguments.cpp checks shapes again.
#pragma once
#include "kernels.h"
#include "ort_abi.h"

namespace edgekit {

enum ExpertInput : int { kExpertX, kExpertIndex, kExpertW, kExpertScales, kExpertInputs };

struct ExpertAttributes {
  Format format;  // kTernary, kInt4 or kInt8Blocks, by the attribute bits
  int64_t k, n;
  size_t block;
};

struct ExpertArguments {
  size_t rows;   // of X
  size_t each;   // pairs that one row of X is in
  size_t pairs;  // of a row and an expert: rows * each
  size_t experts;
  size_t n, k, block, blocks, row_bytes;
  const float* x;        // [rows, k]
  const int64_t* index;  // [pairs], not looked at yet
  const uint8_t* w;      // [experts, n] rows
  const float* scales;   // [experts, n, blocks]
  float* y;              // [pairs, n]
};

OrtStatus* read_attributes(const Api& api, const OrtKernelInfo* info, ExpertAttributes* out);

// Reads and checks inputs and makes the output. Returns null or an error.
OrtStatus* read_arguments(const Api& api, OrtKernelContext* context, const ExpertAttributes& attributes,
                          ExpertArguments* out);

// Computes it on ONNX Runtime's threads. Returns null or an error: no memory, an index that names no expert, or an
// element of X that is infinite or not a number.
OrtStatus* multiply_by_experts(const Api& api, const OrtKernelContext* context, OrtAllocator* allocator,
                               const Kernels& kernels, Format format, const ExpertArguments& a);

}  // namespace edgekit
