// CachedAttention in portable C++: the definition that the others are compared with. It rounds a * b + c once without
// an instruction for it, which is slow: operator.cpp offers it only where it is asked for.
#if !defined(__arm__)
#include "attention.h"

#define EK_LANES 4

namespace edgekit {
namespace {
typedef float V __attribute__((vector_size(16)));
constexpr size_t kTileKeys = 4, kTileColumns = 4;

// The product is exact in double. What its sum loses goes into the last bit ("round to odd"), so that rounding to float
// is that of the exact sum (Boldo and Melquiond, 2008).
inline float fused(float a, float b, float c) {
  const double product = static_cast<double>(a) * b, addend = c;
  double sum = product + addend;
  const double back = sum - product, lost = (product - (sum - back)) + (addend - back);
  uint64_t bits;
  __builtin_memcpy(&bits, &sum, sizeof bits);
  if ((lost < 0 || lost > 0) && (bits & 1) == 0) {
    bits += (lost > 0) == (sum > 0) ? uint64_t{1} : ~uint64_t{0};
    __builtin_memcpy(&sum, &bits, sizeof sum);
  }
  return static_cast<float>(sum);
}
__attribute__((noinline)) V fused(V a, V b, V c) {  // not inline: it stands in many places, and nobody waits for it
  V y;
  for (int i = 0; i < EK_LANES; ++i) y[i] = fused(a[i], b[i], c[i]);
  return y;
}
}  // namespace
}  // namespace edgekit

#include "attention_tiles.h"

namespace edgekit {
const AttentionKernels kScalarAttention = {kWidth, 8, W, nullptr, rotate, few, merge, tile};
}  // namespace edgekit
#endif
