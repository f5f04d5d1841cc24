// What an instruction set has to provide for CachedAttention. docs/operators.md has the arithmetic: eight lanes for
// every sum over a head or a block, fused multiply-adds, one exp, blocks of 64 positions that are summed on their own
// and put together in order. So neither threads nor the number of tokens at once change a bit.
//
// A key-value head's queries are *rows*: all its query heads of the first token, then of the next, each `dim` floats.
// Row r sees positions lo[r] to hi[r] - 1 of a block; where they are equal, none, and its state stays as it was.
#pragma once
#include <stddef.h>
#include <stdint.h>

namespace edgekit {

constexpr size_t kPositions = 64;          // of a block
constexpr size_t kMostHead = 512;          // floats of a head at most
constexpr size_t kHeadStep = 8;            // what they are a multiple of
constexpr size_t kFewRows = 4;             // rows at most that one few() takes
constexpr size_t kMostAttentionRows = 32;  // AttentionKernels::width at most

// Keys and values of a block: `count` positions that are there, rows of `dim` floats.
struct AttentionBlock {
  const float *k, *v;
  size_t dim, count;
  float softcap;  // 0: none
};

// One block's part of a row: the largest score, the sum of exps, and `dim` weighted sums of values.
struct AttentionPart {
  float most, sum;
};

// The running state of rows of a tile, and where their weighted sums are: y[r][dim].
struct AttentionTile {
  const float* q;  // [dim, width], a column each row
  size_t rows;
  float *most, *sum;       // [width]
  float* const* y;         // [rows]
  float* weights;          // [kPositions, width], written and read; aligned to 64 bytes
  const int32_t *lo, *hi;  // [width], 0 and 0 behind the rows
};

struct AttentionKernels {
  size_t width;      // rows of a tile
  size_t few_most;   // rows up to which few() is faster than tiles (measured)
  size_t head_step;  // what `dim` has to be a multiple of; others go to `narrow`
  const AttentionKernels* narrow;

  // y[i] = scale * the rotated x: of the first 2 * half floats pairs (i, i + half), or with `interleaved` (2 i, 2 i +
  // 1), turn by angle i.
  void (*rotate)(const float* x, size_t dim, const float* cos, const float* sin, size_t half, bool interleaved,
                 float scale, float* y);

  // One block for up to kFewRows rows, one after the other at q. out[r] and y[r * dim] get the block's part; both are
  // left alone for a row that sees nothing.
  void (*few)(const AttentionBlock& block, const float* q, size_t rows, const int32_t* lo, const int32_t* hi,
              AttentionPart* out, float* y);

  // Adds a block's part to a row's state.
  void (*merge)(const AttentionPart& part, const float* values, size_t dim, AttentionPart* state, float* y);

  // One block for the rows of a tile, added to their state.
  void (*tile)(const AttentionBlock& block, const AttentionTile& tile);
};

// 32-bit ARM has no fused multiply-adds on every processor: ONNX Runtime runs the function body there.
#if defined(__arm__)
#define EK_ATTENTION(table) nullptr
#else
#define EK_ATTENTION(table) &table
#endif
extern const AttentionKernels kScalarAttention, kAvx2Attention, kAvx512Attention, kNeonAttention;

}  // namespace edgekit
