// 4-bit weights on AVX512-VNNI: few tokens by rows that are read in place, more by panels whose rows lie in lanes.
// Included between the EK_TARGET lines of its file, after avx512.h.
#include "int4_quantize.h"

namespace edgekit {
namespace {

constexpr size_t kLanes = 16;        // rows in a register of sums
constexpr size_t kPiece = 64;        // bytes of a row: the codes of kInt4Span
constexpr size_t kPanelCodes = 512;  // of K in a panel of 16 KiB
constexpr size_t kInPlace = 2;       // tokens up to which rows are read in place (measured: docs/kernels.md)

// Where sums of 16 rows and one token go.
struct Result {
  const int32_t* corrections;
  const float* steps;
  __m512 y;

  void add(size_t block, __m512i sum, __m512 scales) {
    const __m512 exact = _mm512_cvtepi32_ps(_mm512_add_epi32(sum, _mm512_set1_epi32(corrections[block])));
    y = _mm512_add_ps(y, _mm512_mul_ps(exact, _mm512_mul_ps(_mm512_set1_ps(steps[block]), scales)));
  }
};

// Four vectors of 16 lanes -> in each quarter four sums of its four lanes. A lane is a sum of four low and four high
// codes by activations, and two lanes still fit 16 bits.
static_assert(16 * 15 * 127 <= 32767, "sum_quarters()");
inline __m512i sum_quarters(const __m512i* s) {
  const __m512i ones = _mm512_set1_epi16(1);
  const __m512i a = _mm512_madd_epi16(_mm512_packs_epi32(s[0], s[1]), ones);
  const __m512i b = _mm512_madd_epi16(_mm512_packs_epi32(s[2], s[3]), ones);
  return _mm512_madd_epi16(_mm512_packs_epi32(a, b), ones);
}

// A piece of 16 rows, of which `bytes` are there, by T tokens: four rows in each of four vectors, and a quarter of a
// vector for a quarter of the piece.
template <size_t T>
inline void multiply_piece(const uint8_t* w, size_t row_bytes, __mmask64 bytes, const char* ahead,
                           const __m512i (*x)[2], __m512i (*quarters)[4]) {
  const __m512i mask = _mm512_set1_epi8(15);
#pragma GCC unroll 4
  for (size_t q = 0; q < 4; ++q, w += 4 * row_bytes) {
    __m512i sum[T][4];
#pragma GCC unroll 4
    for (size_t r = 0; r < 4; ++r) {
      _mm_prefetch(ahead + (4 * q + r) * 64, _MM_HINT_T1);
      const __m512i codes = _mm512_maskz_loadu_epi8(bytes, w + r * row_bytes);
      const __m512i low = _mm512_and_si512(codes, mask), high = _mm512_and_si512(_mm512_srli_epi16(codes, 4), mask);
#pragma GCC unroll 2
      for (size_t t = 0; t < T; ++t) {
        sum[t][r] = _mm512_dpbusd_epi32(_mm512_setzero_si512(), low, x[t][0]);
        sum[t][r] = _mm512_dpbusd_epi32(sum[t][r], high, x[t][1]);
      }
    }
#pragma GCC unroll 2
    for (size_t t = 0; t < T; ++t) quarters[t][q] = sum_quarters(sum[t]);
  }
}

// The quarters of a piece, of 16 rows each.
inline void order_quarters(const __m512i* q, __m512i* sums) {
  const __m512i a = _mm512_shuffle_i32x4(q[0], q[1], 0x44), b = _mm512_shuffle_i32x4(q[2], q[3], 0x44);
  const __m512i c = _mm512_shuffle_i32x4(q[0], q[1], 0xEE), d = _mm512_shuffle_i32x4(q[2], q[3], 0xEE);
  sums[0] = _mm512_shuffle_i32x4(a, b, 0x88);
  sums[1] = _mm512_shuffle_i32x4(a, b, 0xDD);
  sums[2] = _mm512_shuffle_i32x4(c, d, 0x88);
  sums[3] = _mm512_shuffle_i32x4(c, d, 0xDD);
}

// The halves of a piece.
inline void order_halves(const __m512i* q, __m512i* sums) {
  const __m512i a = _mm512_add_epi32(_mm512_shuffle_i32x4(q[0], q[1], 0x88), _mm512_shuffle_i32x4(q[0], q[1], 0xDD));
  const __m512i b = _mm512_add_epi32(_mm512_shuffle_i32x4(q[2], q[3], 0x88), _mm512_shuffle_i32x4(q[2], q[3], 0xDD));
  sums[0] = _mm512_shuffle_i32x4(a, b, 0x88);
  sums[1] = _mm512_shuffle_i32x4(a, b, 0xDD);
}

// Scales of 16 rows and of four blocks, or of as many as `some` says -> a vector for each block.
inline void transpose_scales(const float* scales, size_t stride, __mmask8 some, __m512* out) {
  __m512 z[4];
#pragma GCC unroll 4
  for (size_t i = 0; i < 4; ++i) {
    const float* row = scales + i * stride;
    z[i] = _mm512_zextps128_ps512(_mm_maskz_loadu_ps(some, row));
    z[i] = _mm512_insertf32x4(z[i], _mm_maskz_loadu_ps(some, row + 4 * stride), 1);
    z[i] = _mm512_insertf32x4(z[i], _mm_maskz_loadu_ps(some, row + 8 * stride), 2);
    z[i] = _mm512_insertf32x4(z[i], _mm_maskz_loadu_ps(some, row + 12 * stride), 3);
  }
  const __m512 a = _mm512_unpacklo_ps(z[0], z[1]), b = _mm512_unpackhi_ps(z[0], z[1]);
  const __m512 c = _mm512_unpacklo_ps(z[2], z[3]), d = _mm512_unpackhi_ps(z[2], z[3]);
  out[0] = _mm512_shuffle_ps(a, c, 0x44);
  out[1] = _mm512_shuffle_ps(a, c, 0xEE);
  out[2] = _mm512_shuffle_ps(b, d, 0x44);
  out[3] = _mm512_shuffle_ps(b, d, 0xEE);
}

inline __mmask8 of_four(size_t left) { return static_cast<__mmask8>(left >= 4 ? 15 : (1u << left) - 1); }

// 16 rows that are read where they are. Blocks of 32 to 256 codes.
template <size_t T>
void rows_in_place(const Int4Product& p, size_t first, size_t from, float* y) {
  const uint8_t* w = p.w + first * p.row_bytes;
  const char* ahead = reinterpret_cast<const char*>(w + kLanes * p.row_bytes) + kFar;
  Result results[T];
#pragma GCC unroll 2
  for (size_t t = 0; t < T; ++t) {
    const size_t at = (from + t) * p.blocks;
    results[t] = {p.corrections + at, p.steps + at, _mm512_setzero_ps()};
  }
  __m512 scales[4];
  __m512i half_block[T] = {};  // the first piece of a block of two
  size_t b = 0;
  for (size_t at = 0; at < p.row_bytes; at += kPiece, ahead += kLanes * 64) {
    if (b % 4 == 0) {
      transpose_scales(p.scales + first * p.blocks + b, p.blocks, of_four(p.blocks - b), scales);
    }
    const size_t left = p.row_bytes - at;
    __m512i x[T][2], quarters[T][4];
#pragma GCC unroll 2
    for (size_t t = 0; t < T; ++t) {
      x[t][0] = load512(p.x + (from + t) * p.stride + 2 * at);
      x[t][1] = load512(p.x + (from + t) * p.stride + 2 * at + kPiece);
    }
    multiply_piece<T>(w + at, p.row_bytes, left >= kPiece ? ~__mmask64{0} : (__mmask64{1} << left) - 1, ahead, x,
                      quarters);
    const size_t ended = p.block > kInt4Span ? at / kPiece % 2 : kInt4Span / p.block;
    const size_t some = ended < p.blocks - b ? ended : p.blocks - b;
#pragma GCC unroll 2
    for (size_t t = 0; t < T; ++t) {
      __m512i sums[4];
      if (p.block == 32) {
        order_quarters(quarters[t], sums);
#pragma GCC unroll 4
        for (size_t i = 0; i < 4; ++i) {
          if (i < some) results[t].add(b + i, sums[i], scales[i]);
        }
        continue;
      }
      order_halves(quarters[t], sums);
      if (p.block == 64) {
        results[t].add(b, sums[0], scales[b % 4]);
        if (some == 2) results[t].add(b + 1, sums[1], scales[b % 4 + 1]);
        continue;
      }
      half_block[t] = _mm512_add_epi32(half_block[t], _mm512_add_epi32(sums[0], sums[1]));
      if (some == 0) continue;
      results[t].add(b, half_block[t], scales[b % 4]);
      half_block[t] = _mm512_setzero_si512();
    }
    b += some;
  }
#pragma GCC unroll 2
  for (size_t t = 0; t < T; ++t) _mm512_store_ps(y + t * kInt4Rows, results[t].y);
}

// 32 bytes of 16 rows of which `bytes` are there, unpacked: the words of a row lie kInt4Rows words apart, those of low
// codes and those of high ones in turn.
template <bool Whole>
inline void pack_words(const uint8_t* w, size_t row_bytes, __mmask32 bytes, uint8_t* panel) {
  const __m512i mask = _mm512_set1_epi8(15);
  const auto load = [&](size_t r) {
    return Whole ? load256(w + r * row_bytes) : _mm256_maskz_loadu_epi8(bytes, w + r * row_bytes);
  };
  __m512i words[8];
  transpose([&](size_t i, size_t j) { return _mm512_inserti64x4(_mm512_castsi256_si512(load(i)), load(j), 1); }, words);
#pragma GCC unroll 8
  for (size_t g = 0; g < 8; ++g, panel += 8 * kInt4Rows) {
    _mm512_store_si512(panel, _mm512_and_si512(words[g], mask));
    _mm512_store_si512(panel + 4 * kInt4Rows, _mm512_and_si512(_mm512_srli_epi16(words[g], 4), mask));
  }
}

// What tokens use of 32 rows, or of 16 twice, a part of K after the other.
struct Int4Panel {
  alignas(64) uint8_t bytes[kPanelCodes * kInt4Rows];
  alignas(64) float scales[kPanelCodes / 16 * kInt4Rows];

  void fill(const Int4Product& p, size_t first, size_t rows, size_t b, size_t blocks) {
#pragma GCC unroll 1
    for (size_t half = 0; half < 2; ++half) {
      const size_t row = first + (rows > kLanes ? half * kLanes : 0);
      const uint8_t* w = p.w + row * p.row_bytes + b * p.block / 2;
      const size_t count = blocks * p.block / 2, whole = count & ~size_t{31};
      uint8_t* out = bytes + half * 64;
      size_t i = 0;
      for (; i < whole; i += 32, out += 64 * kInt4Rows) pack_words<true>(w + i, p.row_bytes, 0, out);
      if (i < count) pack_words<false>(w + i, p.row_bytes, (__mmask32{1} << (count - i)) - 1, out);
      for (size_t c = 0; c < blocks; c += 4) {
        __m512 four[4];
        transpose_scales(p.scales + row * p.blocks + b + c, p.blocks, of_four(blocks - c), four);
#pragma GCC unroll 4
        for (size_t j = 0; j < 4; ++j) _mm512_store_ps(scales + (c + j) * kInt4Rows + half * kLanes, four[j]);
      }
    }
  }
};

// T tokens by 32 rows and so many blocks from block `b` on, added to y. Where there are few sums, those of low and high
// codes are apart: each waits for the one before it.
template <size_t T>
void multiply_panel(const Int4Panel& panel, const Int4Product& p, size_t b, size_t blocks, size_t from, float* y) {
  constexpr size_t kApart = T <= 4 ? 2 : 1;
  const int8_t* x = p.x + from * p.stride;
  const uint8_t* w = panel.bytes;
  __m512 sum[T][2];
#pragma GCC unroll 6
  for (size_t t = 0; t < T; ++t) {
    sum[t][0] = b ? _mm512_load_ps(y + t * kInt4Rows) : _mm512_setzero_ps();
    sum[t][1] = b ? _mm512_load_ps(y + t * kInt4Rows + kLanes) : _mm512_setzero_ps();
  }
  const size_t run = p.block < kInt4Span ? p.block : kInt4Span;
  for (size_t i = 0; i < blocks; ++i) {
    const size_t at = from * p.blocks + b + i;
    __m512i dot[kApart][T][2];
#pragma GCC unroll 6
    for (size_t t = 0; t < T; ++t) {
      dot[0][t][0] = dot[0][t][1] = _mm512_set1_epi32(p.corrections[at + t * p.blocks]);
      if constexpr (kApart == 2) dot[1][t][0] = dot[1][t][1] = _mm512_setzero_si512();
    }
    const size_t begin = (b + i) * p.block;
    for (size_t k = begin; k < begin + p.block; k += run) {
      const int8_t* q = x + (k & ~(kInt4Span - 1)) + (k & (kInt4Span - 1)) / 2;
      for (size_t g = 0; g < run / 2; g += 4) {
#pragma GCC unroll 2
        for (size_t high = 0; high < 2; ++high, w += 4 * kInt4Rows) {
          const __m512i w0 = _mm512_load_si512(w), w1 = _mm512_load_si512(w + 64);
          __m512i(*d)[2] = dot[high % kApart];
#pragma GCC unroll 6
          for (size_t t = 0; t < T; ++t) {
            int32_t four;
            __builtin_memcpy(&four, q + t * p.stride + high * (kInt4Span / 2) + g, sizeof four);
            d[t][0] = _mm512_dpbusd_epi32(d[t][0], w0, _mm512_set1_epi32(four));
            d[t][1] = _mm512_dpbusd_epi32(d[t][1], w1, _mm512_set1_epi32(four));
          }
        }
      }
    }
    const float* scales = panel.scales + i * kInt4Rows;
#pragma GCC unroll 6
    for (size_t t = 0; t < T; ++t) {
      const __m512 step = _mm512_set1_ps(p.steps[at + t * p.blocks]);
#pragma GCC unroll 2
      for (size_t h = 0; h < 2; ++h) {
        __m512i whole = dot[0][t][h];
        if constexpr (kApart == 2) whole = _mm512_add_epi32(whole, dot[1][t][h]);
        const __m512 factor = _mm512_mul_ps(step, _mm512_load_ps(scales + h * kLanes));
        sum[t][h] = _mm512_add_ps(sum[t][h], _mm512_mul_ps(_mm512_cvtepi32_ps(whole), factor));
      }
    }
  }
#pragma GCC unroll 6
  for (size_t t = 0; t < T; ++t) {
    _mm512_store_ps(y + t * kInt4Rows, sum[t][0]);
    _mm512_store_ps(y + t * kInt4Rows + kLanes, sum[t][1]);
  }
}

// How many of so many tokens are multiplied next: few are left over, as few sums keep the multiplier waiting.
inline size_t next_tokens(size_t tokens) {
  if (tokens >= 12 || tokens == 6 || tokens == 9 || tokens == 10) return 6;
  return tokens > 4 ? 4 : tokens;
}

void multiply_int4(const Int4Product& p, size_t first, size_t rows, size_t from, size_t tokens, float* y) {
  if (tokens <= kInPlace && p.block >= 32) {
    for (size_t r = 0; r < rows; r += kLanes) {
      if (tokens == 1) rows_in_place<1>(p, first + r, from, y + r);
      if (tokens == 2) rows_in_place<2>(p, first + r, from, y + r);
    }
    return;
  }
  Int4Panel panel;
  const char* ahead = reinterpret_cast<const char*>(p.w + (first + rows) * p.row_bytes);
  for (size_t b = 0; b < p.blocks; b += kPanelCodes / p.block) {
    const size_t left = p.blocks - b, blocks = left < kPanelCodes / p.block ? left : kPanelCodes / p.block;
    panel.fill(p, first, rows, b, blocks);
    // Asks for the rows that follow, one line of memory after the other.
    for (size_t i = 0; i < rows * blocks * p.block / 2; i += 64, ahead += 64) _mm_prefetch(ahead, _MM_HINT_T1);
    for (size_t t = 0, some = 0; t < tokens; t += some) {
      some = next_tokens(tokens - t);
      float* own = y + t * kInt4Rows;
      if (some == 6) multiply_panel<6>(panel, p, b, blocks, from + t, own);
      if (some == 4) multiply_panel<4>(panel, p, b, blocks, from + t, own);
      if (some == 3) multiply_panel<3>(panel, p, b, blocks, from + t, own);
      if (some == 2) multiply_panel<2>(panel, p, b, blocks, from + t, own);
      if (some == 1) multiply_panel<1>(panel, p, b, blocks, from + t, own);
    }
  }
}

}  // namespace
}  // namespace edgekit
