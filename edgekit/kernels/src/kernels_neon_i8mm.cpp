// ARMv8.6 matrix products: SMMLA multiplies 2 x 8 by 8 x 2 bytes. Phones since about 2021.
#if defined(__aarch64__)
#include <arm_neon.h>

#include "kernels.h"
#include "sparse_table.h"

EK_TARGET_BEGIN(EK_ARM_I8MM)

#include "arm_dot.h"
#include "blocks_arm.h"
#include "floats.h"
#include "sparse_arm.h"

namespace edgekit {
namespace {

constexpr size_t kRows = 8;
constexpr size_t kTokens = 8;  // 4 pairs of rows x 4 pairs of tokens: 16 of 32 registers are sums

// Panels go by 8 codes of K: 8 bytes of each row, one row after the other.
void pack_rows(Format format, const uint8_t* w, size_t row_bytes, size_t rows, size_t bytes, uint8_t* panel) {
  for (size_t r = 0; r < kRows; ++r) {
    const uint8_t* row = w + (r < rows ? r : rows - 1) * row_bytes;
    for (size_t k = 0; k < bytes; k += 16) {
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

void pack(Format format, const uint8_t* w, size_t row_bytes, size_t rows, size_t blocks, uint8_t* panel) {
  pack_rows(format, w, row_bytes, rows, blocks * block_bytes(format), panel);
}

// Sums of 8 rows, two in each of `sum`, and two tokens to [token][row]. Lanes of a sum: row 0 token 0, row 0 token 1,
// row 1 token 0, row 1 token 1.
inline void by_token(const int32x4_t* sum, int32x4_t (*tokens)[2]) {
#pragma GCC unroll 2
  for (size_t h = 0; h < 2; ++h) {
    const int32x4x2_t both = vuzpq_s32(sum[2 * h], sum[2 * h + 1]);
    tokens[0][h] = both.val[0];
    tokens[1][h] = both.val[1];
  }
}

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
    const int32x4_t own[4] = {sum[0][p], sum[1][p], sum[2][p], sum[3][p]};
    int32x4_t tokens[2][2];
    by_token(own, tokens);
    for (size_t t = 0; t < 2 && 2 * p + t < count; ++t) {
#pragma GCC unroll 2
      for (size_t h = 0; h < 2; ++h) {
        int32_t* out = sums + (2 * p + t) * kRows + 4 * h;
        vst1q_s32(out, add ? vaddq_s32(vld1q_s32(out), tokens[t][h]) : tokens[t][h]);
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

// In every 16 bytes of a row four times 8 codes of each row: low ones, then high ones.
void pack_int4(const uint8_t* const* rows, size_t begin, size_t end, uint8_t* panel) {
  const bool whole = end - begin >= 16;
  for (size_t at = begin; at < end; at += 16, panel += 32 * kRows) {
    for (size_t r = 0; r < kRows; ++r) {
      const uint8x16_t v = load_codes(rows[r] + at, whole);
      const uint8x16_t low = vandq_u8(v, vdupq_n_u8(15)), high = vshrq_n_u8(v, 4);
      vst1_u8(panel + 8 * r, vget_low_u8(low));
      vst1_u8(panel + 8 * (kRows + r), vget_high_u8(low));
      vst1_u8(panel + 8 * (2 * kRows + r), vget_low_u8(high));
      vst1_u8(panel + 8 * (3 * kRows + r), vget_high_u8(high));
    }
  }
}

inline void multiply_chunks(const uint8_t* panel, const int8_t* const* x, size_t chunks, const Places& places,
                            int32x4_t (*sums)[2]) {
  constexpr size_t kPairs = kTokens / 2;
  int32x4_t sum[kPairs][4];
#pragma GCC unroll 4
  for (auto& of_pair : sum) {
#pragma GCC unroll 4
    for (auto& of_rows : of_pair) of_rows = vdupq_n_s32(0);
  }
  for (size_t c = 0; c < chunks; ++c) {
#pragma GCC unroll 2
    for (size_t part = 0; part < 2; ++part, panel += 8 * kRows) {
      int8x16_t q[kPairs];
#pragma GCC unroll 4
      for (size_t p = 0; p < kPairs; ++p) {
        const size_t offset = places.at(c) + part * 8;
        q[p] = vcombine_s8(vld1_s8(x[2 * p] + offset), vld1_s8(x[2 * p + 1] + offset));
      }
#pragma GCC unroll 4
      for (size_t i = 0; i < 4; ++i) {
        const int8x16_t w = as_signed(vld1q_u8(panel + 16 * i));
#pragma GCC unroll 4
        for (size_t p = 0; p < kPairs; ++p) sum[p][i] = vmmlaq_s32(sum[p][i], w, q[p]);
      }
    }
  }
#pragma GCC unroll 4
  for (size_t p = 0; p < kPairs; ++p) by_token(sum[p], sums + 2 * p);
}

}  // namespace
}  // namespace edgekit

#include "blocks_arm_tiles.h"

namespace edgekit {
namespace {

// Tokens that fill no tile have nothing to gain: SMMLA would multiply half for nothing.
void multiply_blocks(const BlockProduct& p, size_t first, size_t rows, size_t from, size_t tokens, float* y) {
  const size_t tiled = tiled_tokens(p, first, rows, from, tokens, y), left = tokens - tiled;
  if (left != 0) kNeonDotprodBlocks.multiply(p, first, rows, from + tiled, left, y + tiled * kPartRows);
}

bool quantize_as_dotprod(const float* x, size_t count, size_t block, bool steps_each, Format format, int32_t zero,
                         int8_t* codes, float* steps, int32_t* corrections) {
  return kNeonDotprodBlocks.quantize(x, count, block, steps_each, format, zero, codes, steps, corrections);
}

}  // namespace

const BlockKernels kI8mmBlocks = {kTileRows, quantize_as_dotprod, multiply_blocks};
const Kernels kNeonI8mm = {"neon_i8mm", kRows, 4,      0,      0,      quantize,     gemv,
                           pack,        tile,  finish, sparse, expand, &kI8mmBlocks, &kNeonAttention};

}  // namespace edgekit

EK_TARGET_END
#endif
