// ARMv8.2 dot products: Raspberry Pi 5 and phones since 2018.
#if defined(__aarch64__)
#include <arm_neon.h>

#include "kernels.h"
#include "sparse_table.h"

EK_TARGET_BEGIN(EK_ARM_DOTPROD)

#include "arm_dot.h"
#include "block_quantize.h"
#include "blocks_arm.h"
#include "floats.h"
#include "sparse_arm.h"

namespace edgekit {
namespace {

constexpr size_t kRows = 8;

void pack_rows(Format format, const uint8_t* w, size_t row_bytes, size_t rows, size_t bytes, uint8_t* panel) {
  for (size_t half = 0; half < 2; ++half) {
    const uint8_t* at[4];
#pragma GCC unroll 4
    for (size_t i = 0; i < 4; ++i) at[i] = w + (half * 4 + i < rows ? half * 4 + i : rows - 1) * row_bytes;
    for (size_t k = 0; k < bytes; k += 16) {
      uint8x16_t words[4];
      transpose(at, k, words);
#pragma GCC unroll 4
      for (size_t g = 0; g < 4; ++g) {
        if (format == kInt8) {
          vst1q_u8(panel + (k / 4 + g) * 4 * kRows + 16 * half, signed_int8(words[g]));
          continue;
        }
#pragma GCC unroll 4
        for (size_t f = 0; f < 4; ++f) {
          const size_t step = k / kPlane * kSteps + 8 * f + k % kPlane / 4 + g;
          vst1q_u8(panel + step * 4 * kRows + 16 * half, plane(words[g], static_cast<int>(f)));
        }
      }
    }
  }
}

void pack(Format format, const uint8_t* w, size_t row_bytes, size_t rows, size_t blocks, uint8_t* panel) {
  pack_rows(format, w, row_bytes, rows, blocks * block_bytes(format), panel);
}

template <size_t T, int Lane>
inline void step(const uint8_t* panel, const int8x16_t* q, int32x4_t (*sum)[2]) {
  const int8x16_t w0 = as_signed(vld1q_u8(panel + 4 * kRows * Lane));
  const int8x16_t w1 = as_signed(vld1q_u8(panel + 4 * kRows * Lane + 16));
#pragma GCC unroll 8
  for (size_t t = 0; t < T; ++t) {
    sum[t][0] = vdotq_laneq_s32(sum[t][0], w0, q[t], Lane);
    sum[t][1] = vdotq_laneq_s32(sum[t][1], w1, q[t], Lane);
  }
}

// 8 tokens by 8 rows: 16 of 32 registers are sums.
template <size_t T>
void tile_tokens(const uint8_t* panel, const int8_t* x, size_t stride, size_t blocks, bool add, int32_t* sums) {
  int32x4_t sum[T][2];
#pragma GCC unroll 8
  for (size_t t = 0; t < T; ++t) {
    sum[t][0] = add ? vld1q_s32(sums + t * kRows) : vdupq_n_s32(0);
    sum[t][1] = add ? vld1q_s32(sums + t * kRows + 4) : vdupq_n_s32(0);
  }
  for (size_t s = 0; s < blocks * kSteps; s += 4, panel += 16 * kRows) {
    int8x16_t q[T];
#pragma GCC unroll 8
    for (size_t t = 0; t < T; ++t) q[t] = vld1q_s8(x + t * stride + 4 * s);
    step<T, 0>(panel, q, sum);
    step<T, 1>(panel, q, sum);
    step<T, 2>(panel, q, sum);
    step<T, 3>(panel, q, sum);
  }
#pragma GCC unroll 8
  for (size_t t = 0; t < T; ++t) {
    vst1q_s32(sums + t * kRows, sum[t][0]);
    vst1q_s32(sums + t * kRows + 4, sum[t][1]);
  }
}

void tile(Format, const uint8_t* panel, const int8_t* x, size_t stride, size_t tokens, size_t blocks, bool add,
          int32_t* sums) {
  for (; tokens >= 8; tokens -= 8, x += 8 * stride, sums += 8 * kRows)
    tile_tokens<8>(panel, x, stride, blocks, add, sums);
  for (; tokens >= 4; tokens -= 4, x += 4 * stride, sums += 4 * kRows)
    tile_tokens<4>(panel, x, stride, blocks, add, sums);
  for (; tokens; --tokens, x += stride, sums += kRows) tile_tokens<1>(panel, x, stride, blocks, add, sums);
}

// In every 16 bytes of a row four words of low codes, then four of high ones, each of all rows.
void pack_int4(const uint8_t* const* rows, size_t begin, size_t end, uint8_t* panel) {
  const bool whole = end - begin >= 16;
  for (size_t at = begin; at < end; at += 16, panel += 32 * kRows) {
#pragma GCC unroll 2
    for (size_t half = 0; half < 2; ++half) {
      uint8x16_t v[4], words[4];
#pragma GCC unroll 4
      for (size_t i = 0; i < 4; ++i) v[i] = load_codes(rows[4 * half + i] + at, whole);
      transpose(v, words);
#pragma GCC unroll 4
      for (size_t g = 0; g < 4; ++g) {
        vst1q_u8(panel + 4 * kRows * g + 16 * half, vandq_u8(words[g], vdupq_n_u8(15)));
        vst1q_u8(panel + 4 * kRows * (4 + g) + 16 * half, vshrq_n_u8(words[g], 4));
      }
    }
  }
}

inline void multiply_chunks(const uint8_t* panel, const int8_t* const* x, size_t chunks, const Places& places,
                            int32x4_t (*sum)[2]) {
  constexpr size_t kTokens = 8;
#pragma GCC unroll 8
  for (size_t t = 0; t < kTokens; ++t) sum[t][0] = sum[t][1] = vdupq_n_s32(0);
  const auto multiply = [&](size_t offset) __attribute__((always_inline)) {
    int8x16_t q[kTokens];
#pragma GCC unroll 8
    for (size_t t = 0; t < kTokens; ++t) q[t] = vld1q_s8(x[t] + offset);
    step<kTokens, 0>(panel, q, sum);
    step<kTokens, 1>(panel, q, sum);
    step<kTokens, 2>(panel, q, sum);
    step<kTokens, 3>(panel, q, sum);
    panel += 16 * kRows;
  };
  for (size_t i = 0; i < chunks; i += 2) {
    const size_t offset = places.at(i);
    multiply(offset);
    if (i + 1 < chunks) multiply(offset + places.next);
  }
}

}  // namespace
}  // namespace edgekit

#include "blocks_arm_tiles.h"

namespace edgekit {
namespace {

void multiply_blocks(const BlockProduct& p, size_t first, size_t rows, size_t from, size_t tokens, float* y) {
  const size_t tiled = tiled_tokens(p, first, rows, from, tokens, y);
  few_tokens(p, first, rows, from + tiled, tokens - tiled, y + tiled * kPartRows);
}

}  // namespace

const BlockKernels kNeonDotprodBlocks = {kTileRows, quantize_blocks, multiply_blocks};
const Kernels kNeonDotprod = {
    "neon_dotprod",      kRows,          4, 0, 0, quantize, gemv, pack, tile, finish, sparse, expand,
    &kNeonDotprodBlocks, &kNeonAttention};

}  // namespace edgekit

EK_TARGET_END
#endif
