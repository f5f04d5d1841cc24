// Portable C++: the definition that every other instruction set is compared with, and what runs where there is none.
#include "block_quantize.h"
#include "floats.h"
#include "kernels.h"

namespace edgekit {
namespace {

constexpr size_t kRows = 4;

// Code `step` * 4 + i of a block, in the order in which activations lie.
inline int32_t code(Format format, const uint8_t* block, size_t step, size_t i) {
  if (format == kInt8) return block[4 * step + i];
  size_t plane = step / 8, byte = step % 8 * 4 + i;
  return block[byte] >> (2 * plane) & 3;
}

inline int32_t block_sum(Format format, const uint8_t* w, const int8_t* x) {
  int32_t sum = 0;
  for (size_t s = 0; s < kSteps; ++s) {
    for (size_t i = 0; i < 4; ++i) sum += code(format, w, s, i) * x[4 * s + i];
  }
  return sum;
}

void gemv(Format format, const uint8_t* w, size_t row_bytes, size_t rows, const int8_t* x, size_t stride, size_t tokens,
          size_t blocks, bool each, int32_t* sums) {
  size_t pieces = each ? blocks : 1;
  for (size_t t = 0; t < tokens; ++t) {
    for (size_t r = 0; r < rows; ++r) {
      uint32_t sum = 0;  // biased sums of int8 may wrap around; the difference that the caller takes does not
      for (size_t b = 0; b < blocks; ++b) {
        sum += static_cast<uint32_t>(
            block_sum(format, w + r * row_bytes + b * block_bytes(format), x + t * stride + b * kBlock));
        if (!each && b + 1 < blocks) continue;
        sums[(t * pieces + (each ? b : 0)) * kGemvRows + r] = static_cast<int32_t>(sum);
        sum = 0;
      }
    }
  }
}

void pack(Format format, const uint8_t* w, size_t row_bytes, size_t rows, size_t blocks, uint8_t* panel) {
  for (size_t r = 0; r < kRows; ++r) {
    const uint8_t* row = w + (r < rows ? r : rows - 1) * row_bytes;
    for (size_t b = 0; b < blocks; ++b) {
      for (size_t s = 0; s < kSteps; ++s) {
        uint8_t* out = panel + ((b * kSteps + s) * kRows + r) * 4;
        for (size_t i = 0; i < 4; ++i) out[i] = static_cast<uint8_t>(code(format, row + b * block_bytes(format), s, i));
      }
    }
  }
}

void tile(Format, const uint8_t* panel, const int8_t* x, size_t stride, size_t tokens, size_t blocks, bool add,
          int32_t* sums) {
  for (size_t t = 0; t < tokens; ++t) {
    for (size_t r = 0; r < kRows; ++r) {
      uint32_t sum = add ? static_cast<uint32_t>(sums[t * kRows + r]) : 0;
      for (size_t s = 0; s < blocks * kSteps; ++s) {
        for (size_t i = 0; i < 4; ++i) {
          sum += static_cast<uint32_t>(panel[(s * kRows + r) * 4 + i] * x[t * stride + 4 * s + i]);
        }
      }
      sums[t * kRows + r] = static_cast<int32_t>(sum);
    }
  }
}

bool expand(Format format, SparseRow* row, size_t blocks, uint8_t* codes) {
  for (size_t b = 0; b < blocks; ++b, codes += kBlock) {
    const uint8_t *mask = row->mask, *groups[2];
    size_t stored[2] = {0, 0};
    for (size_t i = 0; i < kBlock; ++i) stored[i / kGroup] += mask[i / 8] >> (i % 8) & 1;
    if (!row->take(format, stored, groups)) return false;
    for (size_t i = 0; i < kBlock; ++i) {
      codes[i] = 128;
      if ((mask[i / 8] >> (i % 8) & 1) == 0) continue;
      const int byte = *groups[i / kGroup]++;
      codes[i] = static_cast<uint8_t>(format == kSparse8 ? byte : (byte >> (i / kGroup * 4) & 15) + 120);
    }
  }
  return true;
}

bool sparse(Format format, SparseRow* row, const int8_t* x, size_t blocks, bool each, int32_t* sums) {
  uint32_t sum = 0;
  for (size_t b = 0; b < blocks; ++b) {
    uint8_t codes[kBlock];
    if (!expand(format, row, 1, codes)) return false;
    sum += static_cast<uint32_t>(block_sum(kInt8, codes, x + b * kBlock));
    if (!each && b + 1 < blocks) continue;
    sums[(each ? b : 0) * kGemvRows] = static_cast<int32_t>(sum);
    sum = 0;
  }
  return true;
}

// The sum over block b of a row whose blocks have a scale each.
int32_t scaled_sum(const BlockProduct& p, const uint8_t* row, const int8_t* x, size_t b) {
  const uint8_t* w = row + code_bytes(p.format, b * p.block);
  if (p.format == kTernary) return block_sum(kTernary, w, x + b * kBlock);
  constexpr size_t kHalf = kInt4Span / 2;
  int32_t sum = 0;
  if (p.format == kInt8Blocks) {
    for (size_t i = 0; i < p.block; ++i) sum += (w[i] - 128 + p.zero) * x[b * p.block + i];
    return sum;
  }
  for (size_t i = b * p.block / 2; i < (b + 1) * p.block / 2; ++i) {
    const int8_t* even = x + (i & ~(kHalf - 1)) * 2 + (i & (kHalf - 1));
    sum += (row[i] & 15) * even[0] + (row[i] >> 4) * even[kHalf];
  }
  return sum;
}

void multiply_blocks(const BlockProduct& p, size_t first, size_t rows, size_t from, size_t tokens, float* y) {
  for (size_t t = from; t < from + tokens; ++t, y += kPartRows) {
    for (size_t r = 0; r < rows; ++r) {
      const uint8_t* row = p.w + (first + r) * p.row_bytes;
      y[r] = 0;
      for (size_t b = 0; b < p.blocks; ++b) {
        const int32_t sum = scaled_sum(p, row, p.x + t * p.stride, b) + p.corrections[t * p.blocks + b];
        y[r] += static_cast<float>(sum) * (p.steps[t * p.blocks + b] * p.scale((first + r) * p.blocks + b));
      }
    }
  }
}

}  // namespace

const BlockKernels kScalarBlocks = {1, quantize_blocks, multiply_blocks};
const Kernels kScalar = {"scalar", kRows, 4,      128,    128,    quantize,       gemv,
                         pack,     tile,  finish, sparse, expand, &kScalarBlocks, EK_ATTENTION(kScalarAttention)};

}  // namespace edgekit
