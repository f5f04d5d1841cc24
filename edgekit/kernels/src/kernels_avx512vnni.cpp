// AVX512-VNNI: vpdpbusd adds four u8 x s8 products to each of 16 int32 lanes.
#if defined(__x86_64__)
#include <immintrin.h>

#include "kernels.h"
#include "sparse_table.h"
#include "sparse_vbmi2.h"

EK_TARGET_BEGIN("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,popcnt")

#include "avx512.h"
#include "floats.h"

namespace edgekit {
namespace {

constexpr size_t kRows = 32;
constexpr size_t kNear = 2048;  // where a single row is read

inline void store(int32_t* out, __m128i v) { _mm_storeu_si128(reinterpret_cast<__m128i*>(out), v); }

// Four vectors of 16 lanes -> in each quarter four sums of its four lanes.
inline __m512i sum_lanes(__m512i s0, __m512i s1, __m512i s2, __m512i s3) {
  const __m512i a = _mm512_add_epi32(_mm512_unpacklo_epi32(s0, s1), _mm512_unpackhi_epi32(s0, s1));
  const __m512i b = _mm512_add_epi32(_mm512_unpacklo_epi32(s2, s3), _mm512_unpackhi_epi32(s2, s3));
  return _mm512_add_epi32(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
}

// Sums of four rows, 16 lanes each -> four sums over the lower halves, then four over the upper.
inline __m256i sum_halves(__m512i s0, __m512i s1, __m512i s2, __m512i s3) {
  const __m512i c = sum_lanes(s0, s1, s2, s3);
  const __m512i d = _mm512_add_epi32(c, _mm512_shuffle_i32x4(c, c, 0xB1));
  return _mm256_inserti128_si256(_mm512_castsi512_si256(d), _mm512_extracti32x4_epi32(d, 2), 1);
}

// Four rows, or the last of them again where fewer are left, and what to ask for while they are read: the rows that
// follow, one line of memory after the other, whatever the order in which they are used (docs/kernels.md).
struct Rows {
  const uint8_t* at[4];
  const char* ahead;
  Rows(const uint8_t* w, size_t row_bytes, size_t first, size_t rows)
      : ahead(reinterpret_cast<const char*>(w + (first + 4) * row_bytes) + kFar) {
#pragma GCC unroll 4
    for (size_t i = 0; i < 4; ++i) at[i] = w + (first + i < rows ? first + i : rows - 1) * row_bytes;
  }
  // As much as 64 bytes of so many rows.
  template <size_t R>
  void prefetch() {
#pragma GCC unroll 4
    for (size_t i = 0; i < R; ++i, ahead += 64) _mm_prefetch(ahead, _MM_HINT_T1);
  }
};

// Two blocks at a time, one in each half: their weights are 64 bytes of a row. `Odd` is a last block without a second.
template <bool Odd>
inline __m512i weights(const uint8_t* p) {
  return Odd ? _mm512_zextsi256_si512(load256(p)) : load512(p);
}
template <bool Odd>
inline __m512i plane(const int8_t* x, size_t f) {
  return Odd ? _mm512_zextsi256_si512(load256(x + f * kPlane)) : load_pair(x + f * kPlane, x + kBlock + f * kPlane);
}

// One token: the planes of a byte are multiplied where they stand, 4^f times too large, and scaled at the end. Two rows
// at a time: their memory comes faster than that of four, and as fast as it can be read at all (docs/kernels.md).
template <bool Odd>
inline void add_one(const uint8_t* const* rows, size_t b, const int8_t* x, __m512i (*sum)[4]) {
  const __m512i x0 = plane<Odd>(x, 0), x1 = plane<Odd>(x, 1), x2 = plane<Odd>(x, 2), x3 = plane<Odd>(x, 3);
#pragma GCC unroll 2
  for (size_t r = 0; r < 2; ++r) {
    const __m512i w = weights<Odd>(rows[r] + b * kPlane);
    sum[r][0] = _mm512_dpbusd_epi32(sum[r][0], _mm512_and_si512(w, _mm512_set1_epi8(0x03)), x0);
    sum[r][1] = _mm512_dpbusd_epi32(sum[r][1], _mm512_and_si512(w, _mm512_set1_epi8(0x0C)), x1);
    sum[r][2] = _mm512_dpbusd_epi32(sum[r][2], _mm512_and_si512(w, _mm512_set1_epi8(0x30)), x2);
    sum[r][3] = _mm512_dpbusd_epi32(sum[r][3], _mm512_and_si512(w, _mm512_set1_epi8(static_cast<char>(0xC0))), x3);
  }
}

inline __m512i unscaled(const __m512i* plane) {
  const __m512i low = _mm512_add_epi32(plane[0], _mm512_srai_epi32(plane[1], 2));
  return _mm512_add_epi32(low, _mm512_add_epi32(_mm512_srai_epi32(plane[2], 4), _mm512_srai_epi32(plane[3], 6)));
}

inline __m256i ternary_one(Rows& rows, const int8_t* x, size_t blocks) {
  __m512i total[4];
#pragma GCC unroll 2
  for (size_t pair = 0; pair < 4; pair += 2) {
    __m512i sum[2][4];
#pragma GCC unroll 2
    for (auto& of_row : sum) {
#pragma GCC unroll 4
      for (auto& of_plane : of_row) of_plane = _mm512_setzero_si512();
    }
    size_t b = 0;
    for (; b + 2 <= blocks; b += 2) {
      rows.prefetch<2>();
      add_one<false>(rows.at + pair, b, x + b * kBlock, sum);
    }
    if (b < blocks) add_one<true>(rows.at + pair, b, x + b * kBlock, sum);
    total[pair] = unscaled(sum[0]);
    total[pair + 1] = unscaled(sum[1]);
  }
  return sum_halves(total[0], total[1], total[2], total[3]);
}

// Several tokens: codes are moved down once and used for each of them.
template <bool Odd, size_t T>
inline void add_few(const Rows& rows, size_t b, const int8_t* x, size_t stride, __m512i (*sum)[4]) {
#pragma GCC unroll 4
  for (size_t f = 0; f < 4; ++f) {
    __m512i codes[4];
#pragma GCC unroll 4
    for (size_t r = 0; r < 4; ++r) {
      const __m512i w = weights<Odd>(rows.at[r] + b * kPlane);
      codes[r] = _mm512_and_si512(_mm512_srli_epi16(w, static_cast<unsigned>(2 * f)), _mm512_set1_epi8(3));
    }
#pragma GCC unroll 4
    for (size_t t = 0; t < T; ++t) {
      const __m512i q = plane<Odd>(x + t * stride, f);
#pragma GCC unroll 4
      for (size_t r = 0; r < 4; ++r) sum[t][r] = _mm512_dpbusd_epi32(sum[t][r], codes[r], q);
    }
  }
}

template <size_t T>
inline void clear(__m512i (*sum)[4]) {
#pragma GCC unroll 12
  for (size_t t = 0; t < T; ++t) {
#pragma GCC unroll 4
    for (size_t r = 0; r < 4; ++r) sum[t][r] = _mm512_setzero_si512();
  }
}

template <size_t T>
inline void ternary_few(Rows& rows, const int8_t* x, size_t stride, size_t blocks, __m256i* sums) {
  __m512i sum[T][4];
  clear<T>(sum);
  size_t b = 0;
  for (; b + 2 <= blocks; b += 2) {
    rows.prefetch<4>();
    add_few<false, T>(rows, b, x + b * kBlock, stride, sum);
  }
  if (b < blocks) add_few<true, T>(rows, b, x + b * kBlock, stride, sum);
#pragma GCC unroll 12
  for (size_t t = 0; t < T; ++t) sums[t] = sum_halves(sum[t][0], sum[t][1], sum[t][2], sum[t][3]);
}

// One token, a sum for every block: nothing is added up over K, so codes are moved down to be added up at once.
inline void ternary_each(Rows& rows, const int8_t* x, size_t blocks, int32_t* sums) {
  for (size_t b = 0; b < blocks; b += 2) {
    rows.prefetch<4>();
    __m512i sum[1][4];
    clear<1>(sum);
    if (b + 1 == blocks) {
      add_few<true, 1>(rows, b, x + b * kBlock, 0, sum);
    } else {
      add_few<false, 1>(rows, b, x + b * kBlock, 0, sum);
    }
    const __m256i found = sum_halves(sum[0][0], sum[0][1], sum[0][2], sum[0][3]);
    store(sums + b * kGemvRows, _mm256_castsi256_si128(found));
    if (b + 1 < blocks) store(sums + (b + 1) * kGemvRows, _mm256_extracti128_si256(found, 1));
  }
}

template <size_t T>
inline void int8_few(Rows& rows, const int8_t* x, size_t stride, size_t blocks, __m256i* sums) {
  __m512i sum[T][4];
  clear<T>(sum);
  for (size_t k = 0; k < blocks * kBlock; k += 64) {
    rows.prefetch<4>();
#pragma GCC unroll 4
    for (size_t t = 0; t < T; ++t) {
      const __m512i q = load512(x + t * stride + k);
#pragma GCC unroll 4
      for (size_t r = 0; r < 4; ++r) sum[t][r] = _mm512_dpbusd_epi32(sum[t][r], load512(rows.at[r] + k), q);
    }
  }
#pragma GCC unroll 12
  for (size_t t = 0; t < T; ++t) sums[t] = sum_halves(sum[t][0], sum[t][1], sum[t][2], sum[t][3]);
}

// One token by 8-bit weights, one row after the other: so they come as fast as memory can be read. The sum of the row,
// or with `each` of every block, kGemvRows apart.
inline void int8_row(const uint8_t* w, const int8_t* x, size_t blocks, bool each, int32_t* sums) {
  __m512i sum[1][4];
  clear<1>(sum);
  for (size_t b = 0; b < blocks; b += 4) {
    if (each) clear<1>(sum);
    const size_t some = blocks - b < 4 ? blocks - b : 4;
#pragma GCC unroll 4
    for (size_t i = 0; i < 4; ++i) {
      if (i >= some) break;
#pragma GCC unroll 2
      for (size_t half = 0; half < kBlock; half += 64) {
        const size_t k = (b + i) * kBlock + half;
        _mm_prefetch(reinterpret_cast<const char*>(w + k) + kNear, _MM_HINT_T1);
        sum[0][i] = _mm512_dpbusd_epi32(sum[0][i], load512(w + k), load512(x + k));
      }
    }
    if (!each) continue;
    const __m256i halves = sum_halves(sum[0][0], sum[0][1], sum[0][2], sum[0][3]);
    int32_t found[4];
    store(found, _mm_add_epi32(_mm256_castsi256_si128(halves), _mm256_extracti128_si256(halves, 1)));
    for (size_t i = 0; i < some; ++i) sums[(b + i) * kGemvRows] = found[i];
  }
  if (each) return;
  const __m512i low = _mm512_add_epi32(sum[0][0], sum[0][1]), high = _mm512_add_epi32(sum[0][2], sum[0][3]);
  sums[0] = _mm512_reduce_add_epi32(_mm512_add_epi32(low, high));
}

template <size_t T>
inline void few(Format format, Rows& rows, const int8_t* x, size_t stride, size_t blocks, __m256i* sums) {
  if (format == kInt8) {
    int8_few<T>(rows, x, stride, blocks, sums);
  } else if (T == 1) {
    sums[0] = ternary_one(rows, x, blocks);
  } else {
    ternary_few<T>(rows, x, stride, blocks, sums);
  }
}

template <size_t T>
void gemv_tokens(Format format, const uint8_t* w, size_t row_bytes, size_t rows, const int8_t* x, size_t stride,
                 size_t blocks, bool each, int32_t* sums) {
  // With `each`, the two halves are two pieces; kInt8's halves are of one block.
  if (T == 1 && format == kInt8) {
    for (size_t r = 0; r < rows; ++r) int8_row(w + r * row_bytes, x, blocks, each, sums + r);
    return;
  }
  const size_t pieces = each ? blocks : 1, span = !each ? blocks : format == kTernary ? 2 : 1;
  for (size_t r = 0; r < rows; r += 4) {
    Rows four(w, row_bytes, r, rows);
    if (T == 1 && each && format == kTernary) {
      ternary_each(four, x, blocks, sums + r);
      continue;
    }
    for (size_t b = 0; b < blocks; b += span) {
      __m256i found[T];
      few<T>(format, four, x + b * kBlock, stride, span < blocks - b ? span : blocks - b, found);
#pragma GCC unroll 12
      for (size_t t = 0; t < T; ++t) {
        int32_t* out = sums + (t * pieces + (each ? b : 0)) * kGemvRows + r;
        const __m128i low = _mm256_castsi256_si128(found[t]), high = _mm256_extracti128_si256(found[t], 1);
        if (each && format == kTernary) {
          store(out, low);
          if (b + 1 < blocks) store(out + kGemvRows, high);
        } else {
          store(out, _mm_add_epi32(low, high));
        }
      }
      for (const uint8_t*& row : four.at) row += span * block_bytes(format);
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
      gemv_tokens<2>(format, w, row_bytes, rows, x, stride, blocks, each, sums);
      return gemv_tokens<1>(format, w, row_bytes, rows, x + 2 * stride, stride, blocks, each,
                            sums + 2 * (each ? blocks : 1) * kGemvRows);
    default:
      return gemv_tokens<4>(format, w, row_bytes, rows, x, stride, blocks, each, sums);
  }
}

// 32 bytes from `offset` on of 16 rows, unpacked: the words of a row lie kRows words apart, in the order of their
// activations; those of kInt4 with low codes and those with high ones in turn.
__attribute__((noinline)) void pack_words(Format format, const uint8_t* const* at, size_t offset, uint8_t* panel) {
  constexpr size_t kWords = 4 * kRows;
  __m512i words[8];
  transpose([&](size_t i, size_t j) { return load_pair(at[i] + offset, at[j] + offset); }, words);
#pragma GCC unroll 8
  for (size_t g = 0; g < 8; ++g) {
    if (format == kTernary) {
      const __m512i mask = _mm512_set1_epi8(3);
      _mm512_storeu_si512(panel + g * kWords, _mm512_and_si512(words[g], mask));
      _mm512_storeu_si512(panel + (8 + g) * kWords, _mm512_and_si512(_mm512_srli_epi16(words[g], 2), mask));
      _mm512_storeu_si512(panel + (16 + g) * kWords, _mm512_and_si512(_mm512_srli_epi16(words[g], 4), mask));
      _mm512_storeu_si512(panel + (24 + g) * kWords, _mm512_and_si512(_mm512_srli_epi16(words[g], 6), mask));
    } else if (format == kInt4) {
      const __m512i mask = _mm512_set1_epi8(15);
      _mm512_storeu_si512(panel + 2 * g * kWords, _mm512_and_si512(words[g], mask));
      _mm512_storeu_si512(panel + (2 * g + 1) * kWords, _mm512_and_si512(_mm512_srli_epi16(words[g], 4), mask));
    } else {
      _mm512_storeu_si512(panel + g * kWords, words[g]);
    }
  }
}

void pack(Format format, const uint8_t* w, size_t row_bytes, size_t rows, size_t blocks, uint8_t* panel) {
  const size_t parts = block_bytes(format) / kPlane;  // of 32 bytes
  for (size_t half = 0; half < 2; ++half) {
    const uint8_t* at[16];
    for (size_t i = 0; i < 16; ++i) at[i] = w + (half * 16 + i < rows ? half * 16 + i : rows - 1) * row_bytes;
    for (size_t p = 0; p < blocks * parts; ++p) {
      pack_words(format, at, p * kPlane, panel + p * (kBlock / parts) * kRows + half * 64);
    }
  }
}

// 12 tokens by 32 rows: 24 of 32 registers are sums.
template <size_t T>
void tile_tokens(const uint8_t* panel, const int8_t* x, size_t stride, size_t blocks, bool add, int32_t* sums) {
  __m512i sum[T][2];
#pragma GCC unroll 12
  for (size_t t = 0; t < T; ++t) {
    sum[t][0] = add ? load512(sums + t * kRows) : _mm512_setzero_si512();
    sum[t][1] = add ? load512(sums + t * kRows + 16) : _mm512_setzero_si512();
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

void tile(Format, const uint8_t* panel, const int8_t* x, size_t stride, size_t tokens, size_t blocks, bool add,
          int32_t* sums) {
  while (tokens) {
    size_t taken = tokens >= 12 ? 12 : tokens >= 8 ? 8 : tokens >= 4 ? 4 : tokens >= 2 ? 2 : 1;
    switch (taken) {
      case 12:
        tile_tokens<12>(panel, x, stride, blocks, add, sums);
        break;
      case 8:
        tile_tokens<8>(panel, x, stride, blocks, add, sums);
        break;
      case 4:
        tile_tokens<4>(panel, x, stride, blocks, add, sums);
        break;
      case 2:
        tile_tokens<2>(panel, x, stride, blocks, add, sums);
        break;
      default:
        tile_tokens<1>(panel, x, stride, blocks, add, sums);
        break;
    }
    tokens -= taken;
    x += taken * stride;
    sums += taken * kRows;
  }
}

// Sparse rows, on 256 bits.
inline __m256i dot_int8(__m256i sum, __m256i stored, __m256i x) { return _mm256_dpbusd_epi32(sum, stored, x); }

}  // namespace
}  // namespace edgekit

#include "blocks_avx512.h"
#include "sparse_256.h"

namespace edgekit {

const BlockKernels kAvx512Blocks = {kLanes, quantize_blocks, multiply_blocks};

const Kernels kAvx512Vnni = {"avx512vnni", kRows, 96,     128,    128,    quantize,       gemv,
                             pack,         tile,  finish, sparse, expand, &kAvx512Blocks, &kAvx512Attention};
const Kernels kAvx512Vbmi2 = {
    "avx512vbmi2",    kRows, 96, 128, 8, quantize, gemv, pack, tile, finish, sparse_vbmi2, expand_vbmi2, &kAvx512Blocks,
    &kAvx512Attention};

}  // namespace edgekit

EK_TARGET_END
#endif
