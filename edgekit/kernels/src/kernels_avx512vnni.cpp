// AVX512-VNNI: vpdpbusd adds four u8 x s8 products to each of 16 int32 lanes.
#if defined(__x86_64__)
#include <immintrin.h>

#include "kernels.h"

EK_TARGET_BEGIN("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")

#include "floats.h"

namespace edgekit {
namespace {

constexpr size_t kRows = 32;
constexpr size_t kTokens = 12;  // 12 tokens x 32 rows: 24 of 32 registers are sums

inline __m256i load256(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
inline __m512i load512(const void* p) { return _mm512_loadu_si512(p); }

// 32 bytes of one row and of the next.
inline __m512i load_pair(const uint8_t* a, const uint8_t* b) {
  return _mm512_inserti64x4(_mm512_castsi256_si512(load256(a)), load256(b), 1);
}

// Four sums of 16 lanes each, two rows in each -> the sums of rows 0..7: row 2 i is the lower half of s[i].
inline __m256i sum_pairs(__m512i s0, __m512i s1, __m512i s2, __m512i s3) {
  __m512i a = _mm512_add_epi32(_mm512_unpacklo_epi32(s0, s1), _mm512_unpackhi_epi32(s0, s1));
  __m512i b = _mm512_add_epi32(_mm512_unpacklo_epi32(s2, s3), _mm512_unpackhi_epi32(s2, s3));
  __m512i c = _mm512_add_epi32(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
  __m256i low = _mm512_castsi512_si256(c), high = _mm512_extracti64x4_epi64(c, 1);
  __m128i even = _mm_add_epi32(_mm256_castsi256_si128(low), _mm256_extracti128_si256(low, 1));
  __m128i odd = _mm_add_epi32(_mm256_castsi256_si128(high), _mm256_extracti128_si256(high, 1));
  return _mm256_set_m128i(_mm_unpackhi_epi32(even, odd), _mm_unpacklo_epi32(even, odd));
}

// Eight rows, or the last of them again where fewer are left.
struct Rows {
  const uint8_t* at[8];
  Rows(const uint8_t* w, size_t row_bytes, size_t first, size_t rows) {
    for (size_t i = 0; i < 8; ++i) at[i] = w + (first + i < rows ? first + i : rows - 1) * row_bytes;
  }
};

inline void prefetch(const uint8_t* p) { _mm_prefetch(reinterpret_cast<const char*>(p) + kPrefetch, _MM_HINT_T0); }

// One token: the planes of a byte are multiplied where they stand, 4^f times too large, and are scaled at the end.
inline __m256i ternary_one(const Rows& rows, const int8_t* x, size_t blocks) {
  const __m512i mask0 = _mm512_set1_epi8(0x03), mask1 = _mm512_set1_epi8(0x0C);
  const __m512i mask2 = _mm512_set1_epi8(0x30), mask3 = _mm512_set1_epi8(static_cast<char>(0xC0));
  __m512i sum[4][4];
  for (auto& of_pair : sum) {
    for (auto& of_plane : of_pair) of_plane = _mm512_setzero_si512();
  }
  for (size_t b = 0; b < blocks; ++b) {
    const int8_t* q = x + b * kBlock;
    const __m512i x0 = _mm512_broadcast_i64x4(load256(q)), x1 = _mm512_broadcast_i64x4(load256(q + 32));
    const __m512i x2 = _mm512_broadcast_i64x4(load256(q + 64)), x3 = _mm512_broadcast_i64x4(load256(q + 96));
#pragma GCC unroll 4
    for (size_t i = 0; i < 4; ++i) {
      const __m512i w = load_pair(rows.at[2 * i] + b * kPlane, rows.at[2 * i + 1] + b * kPlane);
      sum[i][0] = _mm512_dpbusd_epi32(sum[i][0], _mm512_and_si512(w, mask0), x0);
      sum[i][1] = _mm512_dpbusd_epi32(sum[i][1], _mm512_and_si512(w, mask1), x1);
      sum[i][2] = _mm512_dpbusd_epi32(sum[i][2], _mm512_and_si512(w, mask2), x2);
      sum[i][3] = _mm512_dpbusd_epi32(sum[i][3], _mm512_and_si512(w, mask3), x3);
    }
    if (b % 2) {
#pragma GCC unroll 8
      for (size_t i = 0; i < 8; ++i) prefetch(rows.at[i] + b * kPlane);
    }
  }
  __m512i total[4];
  for (size_t i = 0; i < 4; ++i) {
    __m512i low = _mm512_add_epi32(sum[i][0], _mm512_srai_epi32(sum[i][1], 2));
    __m512i high = _mm512_add_epi32(_mm512_srai_epi32(sum[i][2], 4), _mm512_srai_epi32(sum[i][3], 6));
    total[i] = _mm512_add_epi32(low, high);
  }
  return sum_pairs(total[0], total[1], total[2], total[3]);
}

// Several tokens: codes are moved down once and used for each of them.
template <size_t T>
inline void ternary_few(const Rows& rows, const int8_t* x, size_t stride, size_t blocks, __m256i* sums) {
  const __m512i mask = _mm512_set1_epi8(3);
  __m512i sum[T][4];
  for (auto& of_token : sum) {
    for (auto& of_pair : of_token) of_pair = _mm512_setzero_si512();
  }
  for (size_t b = 0; b < blocks; ++b) {
#pragma GCC unroll 4
    for (size_t i = 0; i < 4; ++i) {
      const __m512i w = load_pair(rows.at[2 * i] + b * kPlane, rows.at[2 * i + 1] + b * kPlane);
      const __m512i codes[4] = {_mm512_and_si512(w, mask), _mm512_and_si512(_mm512_srli_epi16(w, 2), mask),
                                _mm512_and_si512(_mm512_srli_epi16(w, 4), mask),
                                _mm512_and_si512(_mm512_srli_epi16(w, 6), mask)};
#pragma GCC unroll 4
      for (size_t t = 0; t < T; ++t) {
#pragma GCC unroll 4
        for (size_t f = 0; f < 4; ++f) {
          const __m512i q = _mm512_broadcast_i64x4(load256(x + t * stride + b * kBlock + f * kPlane));
          sum[t][i] = _mm512_dpbusd_epi32(sum[t][i], codes[f], q);
        }
      }
    }
    if (b % 2) {
#pragma GCC unroll 8
      for (size_t i = 0; i < 8; ++i) prefetch(rows.at[i] + b * kPlane);
    }
  }
  for (size_t t = 0; t < T; ++t) sums[t] = sum_pairs(sum[t][0], sum[t][1], sum[t][2], sum[t][3]);
}

// Rows in pairs as above: 32 bytes of each at a time.
template <size_t T>
inline void int8_few(const Rows& rows, const int8_t* x, size_t stride, size_t blocks, __m256i* sums) {
  __m512i sum[T][4];
  for (auto& of_token : sum) {
    for (auto& of_pair : of_token) of_pair = _mm512_setzero_si512();
  }
  for (size_t k = 0; k < blocks * kBlock; k += 32) {
#pragma GCC unroll 4
    for (size_t i = 0; i < 4; ++i) {
      const __m512i w = load_pair(rows.at[2 * i] + k, rows.at[2 * i + 1] + k);
#pragma GCC unroll 4
      for (size_t t = 0; t < T; ++t) {
        const __m512i q = _mm512_broadcast_i64x4(load256(x + t * stride + k));
        sum[t][i] = _mm512_dpbusd_epi32(sum[t][i], w, q);
      }
    }
    if (k % 64) {
#pragma GCC unroll 8
      for (size_t i = 0; i < 8; ++i) prefetch(rows.at[i] + k);
    }
  }
  for (size_t t = 0; t < T; ++t) sums[t] = sum_pairs(sum[t][0], sum[t][1], sum[t][2], sum[t][3]);
}

template <size_t T>
inline void few(Format format, const Rows& rows, const int8_t* x, size_t stride, size_t blocks, __m256i* sums) {
  if (format == kInt8) return int8_few<T>(rows, x, stride, blocks, sums);
  if (T == 1) {
    sums[0] = ternary_one(rows, x, blocks);
  } else {
    ternary_few<T>(rows, x, stride, blocks, sums);
  }
}

template <size_t T>
void gemv_tokens(Format format, const uint8_t* w, size_t row_bytes, size_t rows, const int8_t* x, size_t stride,
                 size_t blocks, bool each, int32_t* sums) {
  const size_t pieces = each ? blocks : 1, span = each ? 1 : blocks;
  for (size_t r = 0; r < rows; r += 8) {
    for (size_t p = 0; p < pieces; ++p) {
      const Rows eight(w + p * block_bytes(format), row_bytes, r, rows);
      __m256i found[T];
      few<T>(format, eight, x + p * kBlock, stride, span, found);
      for (size_t t = 0; t < T; ++t) {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(sums + (t * pieces + p) * kGemvRows + r), found[t]);
      }
    }
  }
}

void gemv(Format format, const uint8_t* w, size_t row_bytes, size_t rows, const int8_t* x, size_t stride, size_t tokens,
          size_t blocks, bool each, int32_t* sums) {
  switch (tokens) {
    case 1:
      return gemv_tokens<1>(format, w, row_bytes, rows, x, stride, blocks, each, sums);
    case 2:
      return gemv_tokens<2>(format, w, row_bytes, rows, x, stride, blocks, each, sums);
    case 3:
      return gemv_tokens<3>(format, w, row_bytes, rows, x, stride, blocks, each, sums);
    default:
      return gemv_tokens<4>(format, w, row_bytes, rows, x, stride, blocks, each, sums);
  }
}

// 16 rows of 32 bytes -> eight vectors, word g of every row in the g-th.
inline void transpose(const uint8_t* const* rows, size_t offset, __m512i* words) {
  __m512i pair[2][4];
  for (size_t h = 0; h < 2; ++h) {
    __m512i z[4];
    for (size_t i = 0; i < 4; ++i) z[i] = load_pair(rows[8 * h + i] + offset, rows[8 * h + 4 + i] + offset);
    const __m512i a = _mm512_unpacklo_epi32(z[0], z[1]), b = _mm512_unpackhi_epi32(z[0], z[1]);
    const __m512i c = _mm512_unpacklo_epi32(z[2], z[3]), d = _mm512_unpackhi_epi32(z[2], z[3]);
    pair[h][0] = _mm512_unpacklo_epi64(a, c);
    pair[h][1] = _mm512_unpackhi_epi64(a, c);
    pair[h][2] = _mm512_unpacklo_epi64(b, d);
    pair[h][3] = _mm512_unpackhi_epi64(b, d);
  }
  for (size_t i = 0; i < 4; ++i) {
    words[i] = _mm512_shuffle_i32x4(pair[0][i], pair[1][i], 0x88);
    words[4 + i] = _mm512_shuffle_i32x4(pair[0][i], pair[1][i], 0xDD);
  }
}

void pack(Format format, const uint8_t* w, size_t row_bytes, size_t rows, size_t blocks, uint8_t* panel) {
  const __m512i mask = _mm512_set1_epi8(3);
  for (size_t half = 0; half < 2; ++half) {
    const uint8_t* at[16];
    for (size_t i = 0; i < 16; ++i) at[i] = w + (half * 16 + i < rows ? half * 16 + i : rows - 1) * row_bytes;
    const size_t parts = block_bytes(format) / kPlane;  // of 32 bytes
    for (size_t p = 0; p < blocks * parts; ++p) {
      __m512i words[8];
      transpose(at, p * kPlane, words);
      uint8_t* out = panel + p * (kBlock / parts) * kRows + half * 64;
      for (size_t g = 0; g < 8; ++g, out += 4 * kRows) {
        if (format == kInt8) {
          _mm512_storeu_si512(out, words[g]);
          continue;
        }
        _mm512_storeu_si512(out, _mm512_and_si512(words[g], mask));
        _mm512_storeu_si512(out + 32 * kRows, _mm512_and_si512(_mm512_srli_epi16(words[g], 2), mask));
        _mm512_storeu_si512(out + 64 * kRows, _mm512_and_si512(_mm512_srli_epi16(words[g], 4), mask));
        _mm512_storeu_si512(out + 96 * kRows, _mm512_and_si512(_mm512_srli_epi16(words[g], 6), mask));
      }
    }
  }
}

template <size_t T>
void tile_tokens(const uint8_t* panel, const int8_t* x, size_t stride, size_t blocks, int32_t* sums) {
  __m512i sum[T][2];
#pragma GCC unroll 12
  for (size_t t = 0; t < T; ++t) {
    sum[t][0] = load512(sums + t * kRows);
    sum[t][1] = load512(sums + t * kRows + 16);
  }
  for (size_t s = 0; s < blocks * kSteps; ++s) {
    const __m512i w0 = load512(panel + s * 4 * kRows), w1 = load512(panel + s * 4 * kRows + 64);
#pragma GCC unroll 12
    for (size_t t = 0; t < T; ++t) {
      int32_t four;
      __builtin_memcpy(&four, x + t * stride + 4 * s, sizeof four);
      const __m512i q = _mm512_set1_epi32(four);
      sum[t][0] = _mm512_dpbusd_epi32(sum[t][0], w0, q);
      sum[t][1] = _mm512_dpbusd_epi32(sum[t][1], w1, q);
    }
  }
#pragma GCC unroll 12
  for (size_t t = 0; t < T; ++t) {
    _mm512_storeu_si512(sums + t * kRows, sum[t][0]);
    _mm512_storeu_si512(sums + t * kRows + 16, sum[t][1]);
  }
}

void tile(Format, const uint8_t* panel, const int8_t* x, size_t stride, size_t tokens, size_t blocks, int32_t* sums) {
  while (tokens) {
    size_t taken = tokens >= 12 ? 12 : tokens >= 8 ? 8 : tokens >= 4 ? 4 : tokens >= 2 ? 2 : 1;
    switch (taken) {
      case 12:
        tile_tokens<12>(panel, x, stride, blocks, sums);
        break;
      case 8:
        tile_tokens<8>(panel, x, stride, blocks, sums);
        break;
      case 4:
        tile_tokens<4>(panel, x, stride, blocks, sums);
        break;
      case 2:
        tile_tokens<2>(panel, x, stride, blocks, sums);
        break;
      default:
        tile_tokens<1>(panel, x, stride, blocks, sums);
        break;
    }
    tokens -= taken;
    x += taken * stride;
    sums += taken * kRows;
  }
}

}  // namespace

const Kernels kAvx512Vnni = {"avx512vnni", kRows, kTokens, 128, quantize, gemv, pack, tile, finish};

}  // namespace edgekit

EK_TARGET_END
#endif
