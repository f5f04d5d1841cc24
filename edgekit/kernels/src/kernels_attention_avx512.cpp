// CachedAttention on 512 bits.
#if defined(__x86_64__)
#include <immintrin.h>

#include "attention.h"
#include "kernels.h"

#define EK_LANES 16
EK_TARGET_BEGIN("avx512f,avx512bw,avx512vl,avx512dq,fma")

namespace edgekit {
namespace {
typedef __m512 V;
constexpr size_t kTileKeys = 8, kTileColumns = 2;
inline V fused(V a, V b, V c) { return _mm512_fmadd_ps(a, b, c); }
inline float fused(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
}  // namespace
}  // namespace edgekit

#include "attention_tiles.h"

namespace edgekit {
const AttentionKernels kAvx512Attention = {kWidth, 16, W, &kAvx2Attention, rotate, few, merge, tile};
}  // namespace edgekit

EK_TARGET_END
#endif
