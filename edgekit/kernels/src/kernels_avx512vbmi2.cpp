// AVX512-VBMI2: vpexpandb puts the stored codes of 64 weights in their places at once.
#if defined(__x86_64__)
#include <immintrin.h>

#include "sparse_vbmi2.h"

EK_TARGET_BEGIN("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi2,popcnt")

namespace edgekit {
namespace {

// The next 128 weights, as codes from 0 of which 8 or 128 is the zero.
template <Format F>
inline bool take_block(SparseRow* row, __m512i* weights) {
  uint64_t masks[2];
  __builtin_memcpy(masks, row->mask, sizeof masks);
  const size_t stored[2] = {static_cast<size_t>(_mm_popcnt_u64(masks[0])),
                            static_cast<size_t>(_mm_popcnt_u64(masks[1]))};
  const uint8_t* groups[2];
  if (!row->take(F, stored, groups)) return false;
  __m512i codes[2] = {_mm512_loadu_si512(groups[0]), _mm512_loadu_si512(groups[1])};
  if (F == kSparse4) {
    codes[0] = _mm512_and_si512(codes[0], _mm512_set1_epi8(15));
    codes[1] = _mm512_and_si512(_mm512_srli_epi16(codes[1], 4), _mm512_set1_epi8(15));
  }
  const __m512i zeros = _mm512_set1_epi8(static_cast<char>(F == kSparse4 ? 8 : 128));
  weights[0] = _mm512_mask_expand_epi8(zeros, masks[0], codes[0]);
  weights[1] = _mm512_mask_expand_epi8(zeros, masks[1], codes[1]);
  return true;
}

// Sums of 16 lanes each -> four sums.
inline __m128i sum_four(const __m512i* s) {
  const __m512i a = _mm512_add_epi32(_mm512_unpacklo_epi32(s[0], s[1]), _mm512_unpackhi_epi32(s[0], s[1]));
  const __m512i b = _mm512_add_epi32(_mm512_unpacklo_epi32(s[2], s[3]), _mm512_unpackhi_epi32(s[2], s[3]));
  const __m512i c = _mm512_add_epi32(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
  const __m256i d = _mm256_add_epi32(_mm512_castsi512_si256(c), _mm512_extracti64x4_epi64(c, 1));
  return _mm_add_epi32(_mm256_castsi256_si128(d), _mm256_extracti128_si256(d, 1));
}

inline void clear(__m512i* sum) {
#pragma GCC unroll 4
  for (size_t i = 0; i < 4; ++i) sum[i] = _mm512_setzero_si512();
}

// Four blocks have a sum each, which with `each` go out one by one. The row is a copy: a pointer that leaves this
// function would be stored after every group.
template <Format F>
bool sparse_row(SparseRow* given, const int8_t* x, size_t blocks, bool each, int32_t* sums) {
  SparseRow row = *given;
  __m512i sum[4];
  clear(sum);
  for (size_t b = 0; b < blocks; b += 4) {
    if (each) clear(sum);
    const size_t some = blocks - b < 4 ? blocks - b : 4;
#pragma GCC unroll 4
    for (size_t i = 0; i < 4; ++i) {
      if (i >= some) break;
      __m512i w[2];
      if (!take_block<F>(&row, w)) return false;
      const int8_t* q = x + (b + i) * kBlock;
      sum[i] = _mm512_dpbusd_epi32(sum[i], w[0], _mm512_loadu_si512(q));
      sum[i] = _mm512_dpbusd_epi32(sum[i], w[1], _mm512_loadu_si512(q + kGroup));
    }
    if (!each) continue;
    int32_t found[4];
    _mm_storeu_si128(reinterpret_cast<__m128i*>(found), sum_four(sum));
#pragma GCC unroll 4
    for (size_t i = 0; i < 4; ++i) {
      if (i < some) sums[(b + i) * kGemvRows] = found[i];
    }
  }
  *given = row;
  if (each) return true;
  sums[0] =
      _mm512_reduce_add_epi32(_mm512_add_epi32(_mm512_add_epi32(sum[0], sum[1]), _mm512_add_epi32(sum[2], sum[3])));
  return true;
}

template <Format F>
bool expand_row(SparseRow* row, size_t blocks, uint8_t* codes) {
  const __m512i more = _mm512_set1_epi8(F == kSparse4 ? 120 : 0);
  for (size_t b = 0; b < blocks; ++b, codes += kBlock) {
    __m512i w[2];
    if (!take_block<F>(row, w)) return false;
    _mm512_storeu_si512(codes, _mm512_add_epi8(w[0], more));
    _mm512_storeu_si512(codes + kGroup, _mm512_add_epi8(w[1], more));
  }
  return true;
}

}  // namespace

bool sparse_vbmi2(Format format, SparseRow* row, const int8_t* x, size_t blocks, bool each, int32_t* sums) {
  return format == kSparse4 ? sparse_row<kSparse4>(row, x, blocks, each, sums)
                            : sparse_row<kSparse8>(row, x, blocks, each, sums);
}

bool expand_vbmi2(Format format, SparseRow* row, size_t blocks, uint8_t* codes) {
  return format == kSparse4 ? expand_row<kSparse4>(row, blocks, codes) : expand_row<kSparse8>(row, blocks, codes);
}

}  // namespace edgekit

EK_TARGET_END
#endif
