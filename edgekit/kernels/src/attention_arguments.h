// CachedAttention's attributes and inputs, read and checked: nothing past attention_arguments.cpp checks shapes again.
#pragma once
#include "attention.h"
#include "ort_abi.h"

namespace edgekit {

enum AttentionInput : int {
  kQuery,
  kKey,
  kValue,
  kPastKey,
  kPastValue,
  kEnds,
  kTotal,
  kCos,
  kSin,
  kSink,
  kAttentionInputs
};

struct AttentionAttributes {
  int64_t heads, groups, window, rotary, interleaved;
  float scale, softcap;
};

struct AttentionArguments {
  size_t batch, tokens, heads, groups, dim;
  size_t half;                 // pairs of a head that turn
  size_t past_slots, slots;    // of the caches
  const float *q, *k, *v;      // of the first token
  size_t q_stride, kv_stride;  // floats from one token to the next
  const float *past_k, *past_v;
  float *present_k, *present_v;
  const int32_t* ends;     // [batch], the slot of each row's last token
  const float *cos, *sin;  // [positions, half]
  const float* sink;       // [heads], or null
  float* y;                // [batch, tokens, heads, dim]

  size_t start(size_t row) const { return static_cast<size_t>(ends[row]) + 1 - tokens; }
};

OrtStatus* read_attributes(const Api& api, const OrtKernelInfo* info, AttentionAttributes* out);

// Reads and checks inputs and makes the outputs. Returns null or an error.
OrtStatus* read_arguments(const Api& api, OrtKernelContext* context, const AttentionAttributes& attributes,
                          AttentionArguments* out);

// Computes it on ONNX Runtime's threads. Returns null or an error: no memory.
OrtStatus* attend(const Api& api, const OrtKernelContext* context, OrtAllocator* allocator,
                  const AttentionKernels& kernels, const AttentionAttributes& attributes, const AttentionArguments& a);

}  // namespace edgekit
