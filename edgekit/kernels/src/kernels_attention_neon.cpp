// CachedAttention on 64-bit ARM, whose plain NEON has fused multiply-adds.
#if defined(__aarch64__)
#include <arm_neon.h>

#include "attention.h"
#include "kernels.h"

#define EK_LANES 4
EK_TARGET_BEGIN(EK_ARM_NEON)

namespace edgekit {
namespace {
typedef float32x4_t V;
constexpr size_t kTileKeys = 4, kTileColumns = 4;
inline V fused(V a, V b, V c) { return vfmaq_f32(c, a, b); }
inline float fused(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
}  // namespace
}  // namespace edgekit

#include "attention_tiles.h"

namespace edgekit {
const AttentionKernels kNeonAttention = {kWidth, 8, W, nullptr, rotate, few, merge, tile};
}  // namespace edgekit

EK_TARGET_END
#endif
