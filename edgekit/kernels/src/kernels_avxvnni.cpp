// AVX-VNNI: vpdpbusd on 256 bits, for processors that have it without AVX512.
#if defined(__x86_64__)
#include <immintrin.h>

#include "kernels.h"
#include "sparse_table.h"

// Tests build these kernels in AVX512's encoding too, to run them where only that exists.
#if defined(EDGEKIT_TEST_EVEX)
#define EK_DPBUSD _mm256_dpbusd_epi32
EK_TARGET_BEGIN("avx2,fma,f16c,popcnt,avx512vl,avx512vnni")
#else
#define EK_DPBUSD _mm256_dpbusd_avx_epi32
EK_TARGET_BEGIN("avx2,fma,f16c,popcnt,avxvnni")
#endif

#include "floats.h"

namespace edgekit {
namespace {

constexpr int kInt8Zero = 128;

inline __m256i load256(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }

inline __m256i dot_codes(__m256i sum, __m256i codes, __m256i x) { return EK_DPBUSD(sum, codes, x); }

constexpr bool kWide = true;
inline __m256i add_products(__m256i sum, __m256i codes, __m256i x) { return EK_DPBUSD(sum, codes, x); }

inline __m256i dot_int8(__m256i sum, __m256i stored, __m256i x) { return EK_DPBUSD(sum, stored, x); }

inline __m256i dot_block(__m256i sum, __m256i w, __m256i x0, __m256i x1, __m256i x2, __m256i x3) {
  const __m256i mask = _mm256_set1_epi8(3);
  sum = EK_DPBUSD(sum, _mm256_and_si256(w, mask), x0);
  sum = EK_DPBUSD(sum, _mm256_and_si256(_mm256_srli_epi16(w, 2), mask), x1);
  sum = EK_DPBUSD(sum, _mm256_and_si256(_mm256_srli_epi16(w, 4), mask), x2);
  return EK_DPBUSD(sum, _mm256_and_si256(_mm256_srli_epi16(w, 6), mask), x3);
}

}  // namespace
}  // namespace edgekit

#include "blocks_256.h"
#include "sparse_256.h"

namespace edgekit {
namespace {

bool quantize_as_avx2(const float* x, size_t count, size_t block, bool steps_each, Format format, int32_t zero,
                      int8_t* codes, float* steps, int32_t* corrections) {
  return kAvx2Blocks.quantize(x, count, block, steps_each, format, zero, codes, steps, corrections);
}

}  // namespace

const BlockKernels kAvxVnniBlocks = {kLanes, quantize_as_avx2, multiply_blocks};
const Kernels kAvxVnni = {"avxvnni", kRows, 16,     kInt8Zero, kInt8Zero, quantize,        gemv,
                          pack,      tile,  finish, sparse,    expand,    &kAvxVnniBlocks, &kAvx2Attention};
}  // namespace edgekit

EK_TARGET_END
#endif
