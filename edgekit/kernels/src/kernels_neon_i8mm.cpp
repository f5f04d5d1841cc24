// ARMv8.6 matrix products: SMMLA multiplies 2 x 8 by 8 x 2 bytes. Phones since about 2021.
#if defined(__aarch64__)
#include <arm_neon.h>

#include "kernels.h"
#include "sparse_table.h"

EK_TARGET_BEGIN(EK_ARM_I8MM)

#include "arm_dot.h"
#include "floats.h"
#include "sparse_arm.h"

namespace edgekit {
namespace {

constexpr size_t kRows = 8;
constexpr size_t kTokens = 8;  // 4 pairs of rows x 4 pairs of tokens: 16 of 32 registers are sums

// Panels go by 8 codes of K: 8 bytes of each row, one row after the other.
void pack(Format format, const uint8_t* w, size_t row_bytes, size_t rows, size_t blocks, uint8_t* panel) {
  for (size_t r = 0; r < kRows; ++r) {
    const uint8_t* row = w + (r < rows ? r : rows - 1) * row_bytes;
    for (size_t k = 0; k < blocks * block_bytes(format); k += 16) {
      const uint8x16_t v = vld1q_u8(row + k);
      if (format == kInt8) {
        const uint8x16_t codes = signed_int8(v);
        vst1_u8(panel + (k / 8 * kRows + r) * 8, vget_low_u8(codes));
        vst1_u8(panel + ((k / 8 + 1) * kRows + r) * 8, vget_high_u8(codes));
        continue;
      }
#pragma GCC unroll 4
      for (size_t f = 0; f < 4; ++f) {
        const uint8x16_t codes = plane(v, static_cast<int>(f));
        uint8_t* out = panel + ((k / kPlane * 16 + 4 * f + k % kPlane / 8) * kRows + r) * 8;
        vst1_u8(out, vget_low_u8(codes));
        vst1_u8(out + 8 * kRows, vget_high_u8(codes));
      }
    }
  }
}

// Lanes of a sum: row 0 token 0, row 0 token 1, row 1 token 0, row 1 token 1.
template <size_t P>
void tile_pairs(const uint8_t* panel, const int8_t* const* tokens, size_t blocks, size_t count, bool add,
                int32_t* sums) {
  int32x4_t sum[4][P];
#pragma GCC unroll 4
  for (auto& of_rows : sum) {
#pragma GCC unroll 4
    for (auto& of_pair : of_rows) of_pair = vdupq_n_s32(0);
  }
  for (size_t k = 0; k < blocks * kBlock; k += 8, panel += 8 * kRows) {
    int8x16_t q[P];
#pragma GCC unroll 4
    for (size_t p = 0; p < P; ++p) q[p] = vcombine_s8(vld1_s8(tokens[2 * p] + k), vld1_s8(tokens[2 * p + 1] + k));
#pragma GCC unroll 4
    for (size_t i = 0; i < 4; ++i) {
      const int8x16_t w = as_signed(vld1q_u8(panel + 16 * i));
#pragma GCC unroll 4
      for (size_t p = 0; p < P; ++p) sum[i][p] = vmmlaq_s32(sum[i][p], w, q[p]);
    }
  }
#pragma GCC unroll 4
  for (size_t p = 0; p < P; ++p) {
#pragma GCC unroll 2
    for (size_t h = 0; h < 2; ++h) {
      const int32x4x2_t by_token = vuzpq_s32(sum[2 * h][p], sum[2 * h + 1][p]);
      for (size_t t = 0; t < 2 && 2 * p + t < count; ++t) {
        int32_t* out = sums + (2 * p + t) * kRows + 4 * h;
        vst1q_s32(out, add ? vaddq_s32(vld1q_s32(out), by_token.val[t]) : by_token.val[t]);
      }
    }
  }
}

void tile(Format, const uint8_t* panel, const int8_t* x, size_t stride, size_t tokens, size_t blocks, bool add,
          int32_t* sums) {
  for (size_t t = 0; t < tokens; t += kTokens) {
    const size_t count = tokens - t < kTokens ? tokens - t : kTokens;
    const int8_t* at[kTokens];
#pragma GCC unroll 8
    for (size_t i = 0; i < kTokens; ++i) at[i] = x + (t + (i < count ? i : count - 1)) * stride;
    int32_t* out = sums + t * kRows;
    if (count > 4) {
      tile_pairs<4>(panel, at, blocks, count, add, out);
    } else if (count > 2) {
      tile_pairs<2>(panel, at, blocks, count, add, out);
    } else {
      tile_pairs<1>(panel, at, blocks, count, add, out);
    }
  }
}

}  // namespace

const Kernels kNeonI8mm = {"neon_i8mm", kRows, 4,      0,      0,      quantize,    gemv,
                           pack,        tile,  finish, sparse, expand, &kScalarInt4};

}  // namespace edgekit

EK_TARGET_END
#endif
