// 4-bit weights on 256 bits: few tokens by rows that are read in place, more by panels whose rows lie in lanes. The
// including file has x86_256.h and defines
//   add_products(sum, codes, x): products of 32 codes 0..15 and activations, added to sums, and
//   kWide: whether those are eight of 32 bits; else they are 16 of 16 bits, and kChain of them may be added.
#include "int4_quantize.h"

namespace edgekit {
namespace {

constexpr size_t kLanes = 8;  // rows in a register of sums
constexpr size_t kUnit = 32;  // bytes of a row in a register: 64 codes
constexpr size_t kHalf = kInt4Span / 2;
constexpr size_t kInPlace = 2;       // tokens up to which rows are read in place (measured: docs/kernels.md)
constexpr size_t kPanelCodes = 512;  // of K in a panel of 8 KiB
constexpr size_t kChain = 8;
static_assert(kChain * 2 * 15 * 127 <= 32767, "sums of 16 bits");

inline __m256i widened(__m256i sums) { return kWide ? sums : _mm256_madd_epi16(sums, _mm256_set1_epi16(1)); }

inline __m256 scaled(__m256i sum, float step, __m256 scales) {
  return _mm256_mul_ps(_mm256_cvtepi32_ps(sum), _mm256_mul_ps(_mm256_set1_ps(step), scales));
}

// Where byte `at` of a row has its even activations; its odd ones are kHalf further.
inline size_t place(size_t at) { return (at & ~(kHalf - 1)) * 2 + (at & (kHalf - 1)); }

// Four vectors of eight lanes -> in each half four sums of its four lanes, of which two still fit 16 bits.
static_assert(16 * 15 * 127 <= 32767, "sum_halves()");
inline __m256i sum_halves(const __m256i* s) {
  const __m256i ones = _mm256_set1_epi16(1);
  const __m256i a = _mm256_madd_epi16(_mm256_packs_epi32(s[0], s[1]), ones);
  const __m256i b = _mm256_madd_epi16(_mm256_packs_epi32(s[2], s[3]), ones);
  return _mm256_madd_epi16(_mm256_packs_epi32(a, b), ones);
}

// Scales of eight rows and of four blocks, or of as many as there are -> a vector for each block.
inline void transpose_scales(const float* scales, size_t stride, size_t blocks, __m256* out) {
  const __m128i some =
      _mm_cmpgt_epi32(_mm_set1_epi32(blocks < 4 ? static_cast<int>(blocks) : 4), _mm_setr_epi32(0, 1, 2, 3));
  __m256 z[4];
#pragma GCC unroll 4
  for (size_t i = 0; i < 4; ++i) {
    const float* row = scales + i * stride;
    z[i] = _mm256_set_m128(_mm_maskload_ps(row + 4 * stride, some), _mm_maskload_ps(row, some));
  }
  const __m256 a = _mm256_unpacklo_ps(z[0], z[1]), b = _mm256_unpackhi_ps(z[0], z[1]);
  const __m256 c = _mm256_unpacklo_ps(z[2], z[3]), d = _mm256_unpackhi_ps(z[2], z[3]);
  out[0] = _mm256_shuffle_ps(a, c, 0x44);
  out[1] = _mm256_shuffle_ps(a, c, 0xEE);
  out[2] = _mm256_shuffle_ps(b, d, 0x44);
  out[3] = _mm256_shuffle_ps(b, d, 0xEE);
}

// A unit of four rows, or with `half` its first 16 bytes.
inline __m256i multiply_unit(const uint8_t* w, size_t row_bytes, bool half, __m256i even, __m256i odd) {
  const __m256i mask = _mm256_set1_epi8(15);
  __m256i sum[4];
#pragma GCC unroll 4
  for (size_t r = 0; r < 4; ++r, w += row_bytes) {
    const __m256i codes =
        half ? _mm256_zextsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(w))) : load256(w);
    sum[r] = add_products(_mm256_setzero_si256(), _mm256_and_si256(codes, mask), even);
    sum[r] = add_products(sum[r], _mm256_and_si256(_mm256_srli_epi16(codes, 4), mask), odd);
    sum[r] = widened(sum[r]);
  }
  return sum_halves(sum);
}

// Eight rows that are read where they are, by one token. Blocks of 32 to 256 codes.
void row_in_place(const Int4Product& p, size_t first, size_t token, float* y) {
  const uint8_t* w = p.w + first * p.row_bytes;
  const int8_t* x = p.x + token * p.stride;
  const char* ahead = reinterpret_cast<const char*>(w + kLanes * p.row_bytes) + kPrefetch;
  const float* steps = p.steps + token * p.blocks;
  const int32_t* corrections = p.corrections + token * p.blocks;
  __m256 total = _mm256_setzero_ps(), scales[4];
  __m256i block = _mm256_setzero_si256();
  size_t b = 0;
  for (size_t at = 0; at < p.row_bytes; at += kUnit, ahead += kLanes * kUnit) {
    if (b % 4 == 0) transpose_scales(p.scales + first * p.blocks + b, p.blocks, p.blocks - b, scales);
#pragma GCC unroll 4
    for (size_t i = 0; i < kLanes * kUnit; i += 64) _mm_prefetch(ahead + i, _MM_HINT_T0);
    const __m256i even = load256(x + place(at)), odd = load256(x + place(at) + kHalf);
    const bool half = p.row_bytes - at < kUnit;
    const __m256i q0 = multiply_unit(w + at, p.row_bytes, half, even, odd);
    const __m256i q1 = multiply_unit(w + at + 4 * p.row_bytes, p.row_bytes, half, even, odd);
    const __m256i low = _mm256_permute2x128_si256(q0, q1, 0x20), high = _mm256_permute2x128_si256(q0, q1, 0x31);
    if (p.block == 32) {
      const __m256i one = _mm256_add_epi32(low, _mm256_set1_epi32(corrections[b]));
      total = _mm256_add_ps(total, scaled(one, steps[b], scales[b % 4]));
      if (half) break;
      const __m256i other = _mm256_add_epi32(high, _mm256_set1_epi32(corrections[b + 1]));
      total = _mm256_add_ps(total, scaled(other, steps[b + 1], scales[b % 4 + 1]));
      b += 2;
      continue;
    }
    block = _mm256_add_epi32(block, _mm256_add_epi32(low, high));
    if (((at + kUnit) * 2 & (p.block - 1)) != 0) continue;
    block = _mm256_add_epi32(block, _mm256_set1_epi32(corrections[b]));
    total = _mm256_add_ps(total, scaled(block, steps[b], scales[b % 4]));
    block = _mm256_setzero_si256();
    ++b;
  }
  _mm256_storeu_ps(y, total);
}

// What tokens use of 16 rows, or of eight twice, a part of K after the other: words of low codes and of high ones in
// turn, those of all rows together.
struct Int4Panel {
  alignas(32) uint8_t bytes[kPanelCodes * kRows];
  alignas(32) float scales[kPanelCodes / 16 * kRows];

  void fill(const Int4Product& p, size_t first, size_t rows, size_t b, size_t blocks) {
#pragma GCC unroll 1
    for (size_t half = 0; half < 2; ++half) {
      const size_t row = first + (rows > kLanes ? half * kLanes : 0);
      for (size_t at = 0; at < blocks * p.block / 2; at += kUnit) {
        pack_unit(p, row, b * p.block / 2 + at, bytes + at * 2 * kRows + half * kUnit);
      }
      for (size_t c = 0; c < blocks; c += 4) {
        __m256 four[4];
        transpose_scales(p.scales + row * p.blocks + b + c, p.blocks, blocks - c, four);
#pragma GCC unroll 4
        for (size_t j = 0; j < 4; ++j) _mm256_store_ps(scales + (c + j) * kRows + half * kLanes, four[j]);
      }
    }
  }

 private:
  static void pack_unit(const Int4Product& p, size_t row, size_t at, uint8_t* out) {
    const size_t left = p.row_bytes - at;
    uint8_t tail[kLanes * kUnit] = {};
    const uint8_t* rows[kLanes];
    for (size_t r = 0; r < kLanes; ++r) {
      rows[r] = p.w + (row + r) * p.row_bytes + at;
      if (left >= kUnit) continue;
      __builtin_memcpy(tail + r * kUnit, rows[r], left);
      rows[r] = tail + r * kUnit;
    }
    __m256i words[8];
    transpose(rows, 0, words);
    const __m256i mask = _mm256_set1_epi8(15);
#pragma GCC unroll 8
    for (size_t g = 0; g < 8; ++g, out += 8 * kRows) {
      store(out, _mm256_and_si256(words[g], mask));
      store(out + 4 * kRows, _mm256_and_si256(_mm256_srli_epi16(words[g], 4), mask));
    }
  }
};

// Groups of four low and four high codes of 16 rows by T tokens, added to sums. With few 32-bit sums, those of high
// codes are apart: each waits for the one before it.
template <size_t T, size_t Apart>
inline const uint8_t* add_groups(const uint8_t* w, const int8_t* q, size_t stride, size_t groups,
                                 __m256i (*sum)[T][2]) {
  for (size_t g = 0; g < groups; ++g) {
#pragma GCC unroll 2
    for (size_t high = 0; high < 2; ++high, w += 4 * kRows) {
      const __m256i w0 = load256(w), w1 = load256(w + kUnit);
#pragma GCC unroll 6
      for (size_t t = 0; t < T; ++t) {
        int32_t four;
        __builtin_memcpy(&four, q + t * stride + high * kHalf + 4 * g, sizeof four);
        __m256i* own = sum[high % Apart][t];
        own[0] = add_products(own[0], w0, _mm256_set1_epi32(four));
        own[1] = add_products(own[1], w1, _mm256_set1_epi32(four));
      }
    }
  }
  return w;
}

// T tokens by a panel's 16 rows and its blocks, which begin with block `b`, added to y.
template <size_t T>
void multiply_panel(const Int4Panel& panel, const Int4Product& p, size_t b, size_t blocks, size_t from, float* y) {
  constexpr size_t kApart = kWide && T <= 2 ? 2 : 1;
  const uint8_t* w = panel.bytes;
  const size_t whole = p.block < kInt4Span ? p.block : kInt4Span,
               run = kWide || whole < 4 * kChain ? whole : 4 * kChain;
  for (size_t i = 0; i < blocks; ++i) {
    const size_t at = from * p.blocks + b + i;
    __m256i dot[kApart][T][2];
#pragma GCC unroll 6
    for (size_t t = 0; t < T; ++t) {
      dot[0][t][0] = dot[0][t][1] = _mm256_set1_epi32(p.corrections[at + t * p.blocks]);
      if constexpr (kApart == 2) dot[1][t][0] = dot[1][t][1] = _mm256_setzero_si256();
    }
    for (size_t k = (b + i) * p.block; k < (b + i + 1) * p.block; k += run) {
      const int8_t* q = p.x + from * p.stride + place(k / 2);
      if constexpr (kWide) {
        w = add_groups<T, kApart>(w, q, p.stride, run / 8, dot);
      } else {
        __m256i narrow[1][T][2] = {};
        w = add_groups<T, 1>(w, q, p.stride, run / 8, narrow);
#pragma GCC unroll 6
        for (size_t t = 0; t < T; ++t) {
          dot[0][t][0] = _mm256_add_epi32(dot[0][t][0], widened(narrow[0][t][0]));
          dot[0][t][1] = _mm256_add_epi32(dot[0][t][1], widened(narrow[0][t][1]));
        }
      }
    }
#pragma GCC unroll 6
    for (size_t t = 0; t < T; ++t) {
#pragma GCC unroll 2
      for (size_t h = 0; h < 2; ++h) {
        __m256i sum = dot[0][t][h];
        if constexpr (kApart == 2) sum = _mm256_add_epi32(sum, dot[1][t][h]);
        const __m256 scales = _mm256_load_ps(panel.scales + i * kRows + h * kLanes);
        float* own = y + t * kInt4Rows + h * kLanes;
        const __m256 before = b + i ? _mm256_loadu_ps(own) : _mm256_setzero_ps();
        _mm256_storeu_ps(own, _mm256_add_ps(before, scaled(sum, p.steps[at + t * p.blocks], scales)));
      }
    }
  }
}

void multiply_rows(const Int4Product& p, size_t first, size_t rows, size_t from, size_t tokens, float* y) {
  Int4Panel panel;
  const char* ahead = reinterpret_cast<const char*>(p.w + (first + rows) * p.row_bytes);
  for (size_t b = 0; b < p.blocks; b += kPanelCodes / p.block) {
    const size_t left = p.blocks - b, blocks = left < kPanelCodes / p.block ? left : kPanelCodes / p.block;
    panel.fill(p, first, rows, b, blocks);
    // Asks for the rows that follow, one line of memory after the other.
    for (size_t i = 0; i < rows * blocks * p.block / 2; i += 64, ahead += 64) _mm_prefetch(ahead, _MM_HINT_T1);
    size_t t = 0;
    if constexpr (kWide) {
      for (; tokens - t >= 6; t += 6) multiply_panel<6>(panel, p, b, blocks, from + t, y + t * kInt4Rows);
      for (; tokens - t >= 4; t += 4) multiply_panel<4>(panel, p, b, blocks, from + t, y + t * kInt4Rows);
    }
    for (; tokens - t >= 2; t += 2) multiply_panel<2>(panel, p, b, blocks, from + t, y + t * kInt4Rows);
    if (t < tokens) multiply_panel<1>(panel, p, b, blocks, from + t, y + t * kInt4Rows);
  }
}

void multiply_int4(const Int4Product& p, size_t first, size_t rows, size_t from, size_t tokens, float* y) {
  if (tokens <= kInPlace && p.block >= 32) {
    for (size_t r = 0; r < rows; r += kLanes) {
      for (size_t t = 0; t < tokens; ++t) row_in_place(p, first + r, from + t, y + t * kInt4Rows + r);
    }
    return;
  }
  for (size_t r = 0; r < rows; r += kRows) {
    multiply_rows(p, first + r, rows - r < kRows ? rows - r : kRows, from, tokens, y + r);
  }
}

}  // namespace
}  // namespace edgekit
