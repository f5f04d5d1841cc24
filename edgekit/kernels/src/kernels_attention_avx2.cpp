// CachedAttention on 256 bits.
#if defined(__x86_64__)
#include <immintrin.h>

#include "attention.h"
#include "kernels.h"

#define EK_LANES 8
EK_TARGET_BEGIN("avx2,fma")

namespace edgekit {
namespace {
typedef __m256 V;
constexpr size_t kTileKeys = 4, kTileColumns = 2;
inline V fused(V a, V b, V c) { return _mm256_fmadd_ps(a, b, c); }
inline float fused(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
}  // namespace
}  // namespace edgekit

#include "attention_tiles.h"

namespace edgekit {
const AttentionKernels kAvx2Attention = {kWidth, 8, W, nullptr, rotate, few, merge, tile};
}  // namespace edgekit

EK_TARGET_END
#endif
