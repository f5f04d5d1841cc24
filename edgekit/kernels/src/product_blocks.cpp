// The part of a product that some rows of a W are whose blocks have a scale each.
#include "call.h"

namespace edgekit {

void multiply_rows(const BlockKernels& kernels, const BlockProduct& product, size_t n, size_t first, size_t rows,
                   size_t from, size_t tokens, float* y) {
  const size_t whole = rows & ~(kernels.rows - 1), left = rows - whole;
  if (whole != 0) kernels.multiply(product, first, whole, from, tokens, y);
  if (left == 0) return;
  if (n < kernels.rows) return kScalarBlocks.multiply(product, first, rows, from, tokens, y);
  alignas(kAlignment) float last[kPartTokens * kPartRows];
  kernels.multiply(product, n - kernels.rows, kernels.rows, from, tokens, last);
  for (size_t t = 0; t < tokens; ++t) {
    for (size_t r = 0; r < left; ++r) y[t * kPartRows + whole + r] = last[t * kPartRows + kernels.rows - left + r];
  }
}

void block_part(void* data, size_t part) {
  const Call& call = *static_cast<const Call*>(data);
  const Arguments& a = call.a;
  const size_t first = part * kPartRows, rows = smaller(kPartRows, a.n - first);
  const BlockProduct product{call.format, call.zero(),   a.block,    a.blocks,    a.w,        a.row_bytes,
                             a.scales,    a.half_scales, call.codes, call.stride, call.steps, call.corrections};
  alignas(kAlignment) float y[kPartTokens * kPartRows];
  for (size_t t = 0; t < a.m; t += kPartTokens) {
    const size_t tokens = smaller(kPartTokens, a.m - t);
    multiply_rows(*call.kernels.blocks, product, a.n, first, rows, t, tokens, y);
    for (size_t i = 0; i < tokens; ++i) {
      float* own = y + i * kPartRows;
      if (!a.half) {
        float* to = static_cast<float*>(a.y) + (t + i) * a.n + first;
        for (size_t r = 0; r < rows; ++r) to[r] = own[r];
        own = to;
      }
      complete(a, t + i, first, rows, own);
    }
  }
}

}  // namespace edgekit
