// Dot products of rows of W by SDOT, which adds four s8 x s8 products to each of four int32 lanes.
#include "arm.h"

namespace edgekit {
namespace {

typedef int32x4_t CodeSum;
inline CodeSum no_codes() { return vdupq_n_s32(0); }
inline CodeSum add_codes(CodeSum sum, int8x16_t codes, int8x16_t x) { return vdotq_s32(sum, codes, x); }
inline int32x4_t total_codes(CodeSum sum) { return sum; }

inline int32x4_t dot_int8(int32x4_t sum, int8x16_t w, int8x16_t x) { return vdotq_s32(sum, w, x); }

// Planes 1 and 2 are multiplied where they stand, 4 and 16 times too large; the top one is moved down, as it would be
// negative. 32 bytes of a row by the eight vectors of its block of activations.
struct Ternary {
  int32x4_t ones, fours, sixteens;
};

inline void add_block(Ternary& sum, const uint8_t* w, const int8x16_t* x) {
#pragma GCC unroll 2
  for (int h = 0; h < 2; ++h) {
    const uint8x16_t v = vld1q_u8(w + 16 * h);
    sum.ones = vdotq_s32(sum.ones, as_signed(vandq_u8(v, vdupq_n_u8(0x03))), x[h]);
    sum.fours = vdotq_s32(sum.fours, as_signed(vandq_u8(v, vdupq_n_u8(0x0C))), x[2 + h]);
    sum.sixteens = vdotq_s32(sum.sixteens, as_signed(vandq_u8(v, vdupq_n_u8(0x30))), x[4 + h]);
    sum.ones = vdotq_s32(sum.ones, as_signed(vshrq_n_u8(v, 6)), x[6 + h]);
  }
}

inline int32x4_t total(const Ternary& sum) {
  return vaddq_s32(sum.ones, vaddq_s32(vshrq_n_s32(sum.fours, 2), vshrq_n_s32(sum.sixteens, 4)));
}

inline int32x4_t ternary_rows(const uint8_t* const* rows, const int8_t* x, size_t blocks, const uint8_t* ahead) {
  const int32x4_t zero = vdupq_n_s32(0);
  Ternary sum[4] = {{zero, zero, zero}, {zero, zero, zero}, {zero, zero, zero}, {zero, zero, zero}};
  for (size_t b = 0; b < blocks; ++b) {
    int8x16_t q[8];
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) q[i] = vld1q_s8(x + b * kBlock + 16 * i);
#pragma GCC unroll 4
    for (int r = 0; r < 4; ++r) {
      add_block(sum[r], rows[r] + b * kPlane, q);
    }
    ahead = prefetch(ahead, kPlane);
  }
  return sum_rows(total(sum[0]), total(sum[1]), total(sum[2]), total(sum[3]));
}

inline int32x4_t int8_rows(const uint8_t* const* rows, const int8_t* x, size_t blocks, const uint8_t* ahead) {
  int32x4_t sum[4] = {vdupq_n_s32(0), vdupq_n_s32(0), vdupq_n_s32(0), vdupq_n_s32(0)};
  for (size_t k = 0; k < blocks * kBlock; k += 16) {
    const int8x16_t q = vld1q_s8(x + k);
#pragma GCC unroll 4
    for (int r = 0; r < 4; ++r) {
      sum[r] = dot_int8(sum[r], as_signed(signed_int8(vld1q_u8(rows[r] + k))), q);
    }
    ahead = prefetch(ahead, 16);
  }
  return sum_rows(sum[0], sum[1], sum[2], sum[3]);
}

void gemv(Format format, const uint8_t* w, size_t row_bytes, size_t rows, const int8_t* x, size_t stride, size_t tokens,
          size_t blocks, bool each, int32_t* sums) {
  const size_t pieces = each ? blocks : 1, span = each ? 1 : blocks;
  for (size_t r = 0; r < rows; r += 4) {
    for (size_t p = 0; p < pieces; ++p) {
      const uint8_t* at[4];
#pragma GCC unroll 4
      for (size_t i = 0; i < 4; ++i)
        at[i] = w + (r + i < rows ? r + i : rows - 1) * row_bytes + p * block_bytes(format);
      const uint8_t* ahead = w + (r + 4) * row_bytes + 4 * p * block_bytes(format) + kPrefetch;
      for (size_t t = 0; t < tokens; ++t) {
        const int8_t* q = x + t * stride + p * kBlock;
        vst1q_s32(sums + (t * pieces + p) * kGemvRows + r,
                  format == kInt8 ? int8_rows(at, q, span, ahead) : ternary_rows(at, q, span, ahead));
      }
    }
  }
}

// Four rows of 16 bytes -> four vectors, word g of every row in the g-th.
inline void transpose(const uint8x16_t* rows, uint8x16_t* words) {
  const uint32x4x2_t a = vtrnq_u32(vreinterpretq_u32_u8(rows[0]), vreinterpretq_u32_u8(rows[1]));
  const uint32x4x2_t b = vtrnq_u32(vreinterpretq_u32_u8(rows[2]), vreinterpretq_u32_u8(rows[3]));
  words[0] = vreinterpretq_u8_u32(vcombine_u32(vget_low_u32(a.val[0]), vget_low_u32(b.val[0])));
  words[1] = vreinterpretq_u8_u32(vcombine_u32(vget_low_u32(a.val[1]), vget_low_u32(b.val[1])));
  words[2] = vreinterpretq_u8_u32(vcombine_u32(vget_high_u32(a.val[0]), vget_high_u32(b.val[0])));
  words[3] = vreinterpretq_u8_u32(vcombine_u32(vget_high_u32(a.val[1]), vget_high_u32(b.val[1])));
}

inline void transpose(const uint8_t* const* rows, size_t offset, uint8x16_t* words) {
  uint8x16_t v[4];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) v[i] = vld1q_u8(rows[i] + offset);
  transpose(v, words);
}

}  // namespace
}  // namespace edgekit
