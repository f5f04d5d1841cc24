// AVX2: vpmaddubsw multiplies u8 by s8 and adds pairs in int16, so every operand is kept where a pair cannot overflow.
#if defined(__x86_64__)
#include <immintrin.h>

#include "kernels.h"
#include "sparse_table.h"

EK_TARGET_BEGIN("avx2,fma,f16c,popcnt")

#include "block_quantize.h"

namespace edgekit {
namespace {

constexpr int kInt8Zero = 0;

inline __m256i load256(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }

inline __m256i widen(__m256i sum, __m256i pairs) {
  return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}

// A pair is at most 2 * 3 * 127 = 762.
inline __m256i dot_codes(__m256i sum, __m256i codes, __m256i x) { return widen(sum, _mm256_maddubs_epi16(codes, x)); }

// At most 2 * 15 * 127 = 3810 of them, eight times over.
constexpr bool kWide = false;
inline __m256i add_products(__m256i sum, __m256i codes, __m256i x) {
  return _mm256_add_epi16(sum, _mm256_maddubs_epi16(codes, x));
}

// |w| <= 128 by x with w's sign: a pair is at most 2 * 128 * 127 = 32512.
inline __m256i dot_int8(__m256i sum, __m256i stored, __m256i x) {
  const __m256i w = _mm256_xor_si256(stored, _mm256_set1_epi8(static_cast<char>(0x80)));
  return widen(sum, _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w)));
}

// The pairs of the four planes of one block, at most 4 * 762, are added before they are widened.
inline __m256i dot_block(__m256i sum, __m256i w, __m256i x0, __m256i x1, __m256i x2, __m256i x3) {
  const __m256i mask = _mm256_set1_epi8(3);
  const __m256i a = _mm256_maddubs_epi16(_mm256_and_si256(w, mask), x0);
  const __m256i b = _mm256_maddubs_epi16(_mm256_and_si256(_mm256_srli_epi16(w, 2), mask), x1);
  const __m256i c = _mm256_maddubs_epi16(_mm256_and_si256(_mm256_srli_epi16(w, 4), mask), x2);
  const __m256i d = _mm256_maddubs_epi16(_mm256_and_si256(_mm256_srli_epi16(w, 6), mask), x3);
  return widen(sum, _mm256_add_epi16(_mm256_add_epi16(a, b), _mm256_add_epi16(c, d)));
}

}  // namespace
}  // namespace edgekit

#include "blocks_256.h"
#include "sparse_256.h"

namespace edgekit {
const BlockKernels kAvx2Blocks = {kLanes, quantize_blocks, multiply_blocks};
const Kernels kAvx2 = {"avx2", kRows, 16,     kInt8Zero, kInt8Zero, quantize,     gemv,
                       pack,   tile,  finish, sparse,    expand,    &kAvx2Blocks, &kAvx2Attention};
}  // namespace edgekit

EK_TARGET_END
#endif
