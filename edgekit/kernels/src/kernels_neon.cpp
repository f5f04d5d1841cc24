// NEON without dot products: Raspberry Pi 4, and 32-bit ARM. Products of bytes are int16; sums of them stay there only
// as long as they cannot overflow, which the bounds below say.
#if defined(__ARM_NEON) || defined(__aarch64__)
#include <arm_neon.h>

#include "kernels.h"
#include "sparse_table.h"

EK_TARGET_BEGIN(EK_ARM_NEON)

#include "arm.h"
#include "block_quantize.h"
#include "floats.h"

namespace edgekit {
namespace {

constexpr size_t kRows = 8;
constexpr size_t kGemvAlways =
    size_t{1} << 31;  // gemv_most: packing a panel never pays (docs/measured/kernels-arm-counts.csv)
constexpr int kMostInt16 = 32767;
constexpr size_t kTernaryChain = 64, kInt8Chain = 2;  // products that are added before they are widened
static_assert(16 * 3 * 127 <= kMostInt16, "a block of a row: 16 products of a code and an activation in each lane");
static_assert(kTernaryChain * 3 * 127 <= kMostInt16 && kInt8Chain * 128 * 127 <= kMostInt16, "tile()");

inline int16x8_t add_products(int16x8_t sum, uint8x16_t codes, int8x16_t x) {
  sum = vmlal_s8(sum, vget_low_s8(as_signed(codes)), vget_low_s8(x));
  return vmlal_s8(sum, vget_high_s8(as_signed(codes)), vget_high_s8(x));
}

// Sums of four rows and T tokens, which share what is unpacked of the rows.
template <size_t T>
inline void ternary_rows(const uint8_t* const* rows, const int8_t* x, size_t stride, size_t blocks,
                         const uint8_t* ahead, int32x4_t (&sum)[T][4]) {
  const uint8x16_t mask = vdupq_n_u8(3);
  for (size_t b = 0; b < blocks; ++b) {
#pragma GCC unroll 4
    for (int r = 0; r < 4; ++r) {
      int16x8_t products[T];
#pragma GCC unroll 2
      for (auto& of_token : products) of_token = vdupq_n_s16(0);
#pragma GCC unroll 2
      for (int h = 0; h < 2; ++h) {
        const uint8x16_t v = vld1q_u8(rows[r] + b * kPlane + 16 * h);
        const uint8x16_t codes[4] = {vandq_u8(v, mask), vandq_u8(vshrq_n_u8(v, 2), mask),
                                     vandq_u8(vshrq_n_u8(v, 4), mask), vshrq_n_u8(v, 6)};
#pragma GCC unroll 2
        for (size_t t = 0; t < T; ++t) {
#pragma GCC unroll 4
          for (size_t f = 0; f < 4; ++f) {
            const int8_t* q = x + t * stride + b * kBlock + f * kPlane + 16 * h;
            products[t] = add_products(products[t], codes[f], vld1q_s8(q));
          }
        }
      }
#pragma GCC unroll 2
      for (size_t t = 0; t < T; ++t) sum[t][r] = vpadalq_s16(sum[t][r], products[t]);
    }
    ahead = prefetch(ahead, kPlane);
  }
}

inline int32x4_t dot_int8(int32x4_t sum, int8x16_t w, int8x16_t x) {
  const int16x8_t low = vmull_s8(vget_low_s8(w), vget_low_s8(x));
  return vpadalq_s16(sum, vmlal_s8(low, vget_high_s8(w), vget_high_s8(x)));
}

template <size_t T>
inline void int8_rows(const uint8_t* const* rows, const int8_t* x, size_t stride, size_t blocks, const uint8_t* ahead,
                      int32x4_t (&sum)[T][4]) {
  for (size_t k = 0; k < blocks * kBlock; k += 16) {
    int8x16_t q[T];
#pragma GCC unroll 2
    for (size_t t = 0; t < T; ++t) q[t] = vld1q_s8(x + t * stride + k);
#pragma GCC unroll 4
    for (int r = 0; r < 4; ++r) {
      const int8x16_t w = as_signed(signed_int8(vld1q_u8(rows[r] + k)));
#pragma GCC unroll 2
      for (size_t t = 0; t < T; ++t) sum[t][r] = dot_int8(sum[t][r], w, q[t]);
    }
    ahead = prefetch(ahead, 16);
  }
}

template <size_t T>
void gemv_tokens(Format format, const uint8_t* const* rows, const int8_t* x, size_t stride, size_t blocks,
                 const uint8_t* ahead, size_t sum_stride, int32_t* sums) {
  int32x4_t sum[T][4];
  for (auto& of_token : sum) {
    for (auto& of_row : of_token) of_row = vdupq_n_s32(0);
  }
  if (format == kInt8) {
    int8_rows<T>(rows, x, stride, blocks, ahead, sum);
  } else {
    ternary_rows<T>(rows, x, stride, blocks, ahead, sum);
  }
  for (size_t t = 0; t < T; ++t) {
    vst1q_s32(sums + t * sum_stride, sum_rows(sum[t][0], sum[t][1], sum[t][2], sum[t][3]));
  }
}

void gemv(Format format, const uint8_t* w, size_t row_bytes, size_t rows, const int8_t* x, size_t stride, size_t tokens,
          size_t blocks, bool each, int32_t* sums) {
  const size_t pieces = each ? blocks : 1, span = each ? 1 : blocks, sum_stride = pieces * kGemvRows;
  for (size_t r = 0; r < rows; r += 4) {
    for (size_t p = 0; p < pieces; ++p) {
      const uint8_t* at[4];
#pragma GCC unroll 4
      for (size_t i = 0; i < 4; ++i)
        at[i] = w + (r + i < rows ? r + i : rows - 1) * row_bytes + p * block_bytes(format);
      const uint8_t* ahead = w + (r + 4) * row_bytes + 4 * p * block_bytes(format) + kPrefetch;
      const int8_t* q = x + p * kBlock;
      int32_t* to = sums + p * kGemvRows + r;
      size_t t = 0;
      for (; t + 2 <= tokens; t += 2) {
        gemv_tokens<2>(format, at, q + t * stride, stride, span, ahead, sum_stride, to + t * sum_stride);
      }
      if (t < tokens) gemv_tokens<1>(format, at, q + t * stride, stride, span, ahead, sum_stride, to + t * sum_stride);
    }
  }
}

// Panels go by single codes of K: one byte of each of eight rows.
void pack(Format format, const uint8_t* w, size_t row_bytes, size_t rows, size_t blocks, uint8_t* panel) {
  for (size_t r = 0; r < kRows; ++r) {
    const uint8_t* row = w + (r < rows ? r : rows - 1) * row_bytes;
    for (size_t b = 0; b < blocks; ++b) {
      uint8_t* out = panel + b * kBlock * kRows + r;
      for (size_t k = 0; k < kBlock; ++k) {
        out[k * kRows] =
            format == kInt8 ? row[b * kBlock + k] ^ 0x80 : row[b * kPlane + k % kPlane] >> (2 * (k / kPlane)) & 3;
      }
    }
  }
}

template <size_t Chain, size_t T>
void tile_tokens(const uint8_t* panel, const int8_t* x, size_t stride, size_t blocks, bool add, int32_t* sums) {
  int32x4_t sum[T][2];
#pragma GCC unroll 12
  for (size_t t = 0; t < T; ++t) {
    sum[t][0] = add ? vld1q_s32(sums + t * kRows) : vdupq_n_s32(0);
    sum[t][1] = add ? vld1q_s32(sums + t * kRows + 4) : vdupq_n_s32(0);
  }
  for (size_t k = 0; k < blocks * kBlock; k += Chain) {
    int16x8_t products[T];
#pragma GCC unroll 4
    for (auto& of_token : products) of_token = vdupq_n_s16(0);
    for (size_t i = k; i < k + Chain; ++i) {
      const int8x8_t w = vld1_s8(reinterpret_cast<const int8_t*>(panel) + i * kRows);
#pragma GCC unroll 4
      for (size_t t = 0; t < T; ++t) products[t] = vmlal_s8(products[t], w, vld1_dup_s8(x + t * stride + i));
    }
#pragma GCC unroll 4
    for (size_t t = 0; t < T; ++t) {
      sum[t][0] = vaddw_s16(sum[t][0], vget_low_s16(products[t]));
      sum[t][1] = vaddw_s16(sum[t][1], vget_high_s16(products[t]));
    }
  }
#pragma GCC unroll 12
  for (size_t t = 0; t < T; ++t) {
    vst1q_s32(sums + t * kRows, sum[t][0]);
    vst1q_s32(sums + t * kRows + 4, sum[t][1]);
  }
}

template <size_t Chain>
void tile_chain(const uint8_t* panel, const int8_t* x, size_t stride, size_t tokens, size_t blocks, bool add,
                int32_t* sums) {
  for (; tokens >= 4; tokens -= 4, x += 4 * stride, sums += 4 * kRows) {
    tile_tokens<Chain, 4>(panel, x, stride, blocks, add, sums);
  }
  for (; tokens; --tokens, x += stride, sums += kRows) tile_tokens<Chain, 1>(panel, x, stride, blocks, add, sums);
}

void tile(Format format, const uint8_t* panel, const int8_t* x, size_t stride, size_t tokens, size_t blocks, bool add,
          int32_t* sums) {
  if (format == kInt8) {
    tile_chain<kInt8Chain>(panel, x, stride, tokens, blocks, add, sums);
  } else {
    tile_chain<kTernaryChain>(panel, x, stride, tokens, blocks, add, sums);
  }
}

static_assert(kInt4Span / 8 * 15 * 127 <= kMostInt16, "a span of a row: 16 products in each lane");
typedef int16x8_t CodeSum;
inline CodeSum no_codes() { return vdupq_n_s16(0); }
inline CodeSum add_codes(CodeSum sum, int8x16_t codes, int8x16_t x) {
  return add_products(sum, vreinterpretq_u8_s8(codes), x);
}
inline int32x4_t total_codes(CodeSum sum) { return vpaddlq_s16(sum); }

}  // namespace
}  // namespace edgekit

#include "blocks_arm.h"
#include "sparse_arm.h"

namespace edgekit {

const BlockKernels kNeonBlocks = {kRowGroup, quantize_blocks, few_tokens};

const Kernels kNeon = {"neon", kRows, kGemvAlways, 0,      0,      quantize,     gemv,
                       pack,   tile,  finish,      sparse, expand, &kNeonBlocks, EK_ATTENTION(kNeonAttention)};

}  // namespace edgekit

EK_TARGET_END
#endif
