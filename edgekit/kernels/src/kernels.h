// What an instruction set has to provide, and the layouts that all of them share. docs/operators.md says the same in
// words.
//
// Weights are rows of blocks of 128 codes. kTernary: 32 bytes a block, code k in bits 2(k%4) of byte k/4, worth code
// - 1. kInt8: 128 bytes a block, worth code - 128. Rows are read where they lie, never repacked for good.
//
// Activations are int8 in -127..127, rows of whole blocks, `stride` bytes apart, padded with zeros. For kInt8 in order
// of K. For kTernary in *planes*: byte 32 f + j of a block is element 4 j + f, so that `weights & 3 << 2 f` meets 32
// neighbouring bytes and no code has to be moved.
//
// Sparse rows (kSparse4, kSparse8) begin with a bit for each weight, 16 bytes a block, set where the weight is stored.
// Bytes with the codes of those follow. kSparse8: one after the other, worth code - 128. kSparse4: 4 bits worth code
// - 8, in the low halves of the bytes those of the first 64 weights of every block, in the high halves those of the
// others; so no code has to be moved to another byte. kSparseTail bytes can be read behind any row.
//
// kInt4 and kInt8Blocks: blocks of another size, 16 to 256 codes, and a scale for each. kInt8Blocks: a byte a code, as
// kInt8. kInt4: element 2 i of a block in the low half of its byte i and element 2 i + 1 in the high half, worth code
// - 8. Activations of kInt4 lie in planes of another kind: in every 128 bytes first the elements with even numbers,
// then those with odd ones. A block ends in the middle of such 128 bytes where it ends there.
//
// Products are summed exactly and never accumulated over K in fewer than 32 bits; floats.h holds the float arithmetic
// for all instruction sets, so results are the same bits on each. Everything is valid input here: operator.cpp checked
// it.
#pragma once
#include <stddef.h>
#include <stdint.h>

#include "attention.h"
#include "half.h"

namespace edgekit {

enum Format : int { kTernary = 0, kInt8 = 1, kSparse4 = 2, kSparse8 = 3, kInt4 = 4, kInt8Blocks = 5 };

constexpr size_t kBlock = 128;         // codes of K
constexpr size_t kPlane = 32;          // bytes of a plane of activations
constexpr size_t kSteps = 32;          // groups of 4 codes in a block
constexpr size_t kGemvRows = 32;       // rows at most that one gemv() call takes
constexpr size_t kGemvTokens = 4;      // tokens at most that one gemv() call takes
constexpr size_t kMostPanelRows = 32;  // Kernels::panel_rows at most
constexpr size_t kPrefetch = 4096;     // bytes past the rows in use that gemv() asks for (measured: docs/kernels.md)

constexpr size_t kGroup = 64;              // weights of a sparse row that one word of its mask tells of
constexpr size_t kMaskBytes = kBlock / 8;  // of a block's mask
constexpr size_t kSparseTail = kGroup;     // bytes behind the last sparse row, so that a group's are read at once

constexpr size_t block_bytes(Format format) { return format == kTernary ? kBlock / 4 : kBlock; }
// Formats whose operators have an attribute block_size, and a scale for each block.
constexpr bool in_blocks(Format format) { return format == kInt4 || format == kInt8Blocks; }
constexpr bool is_sparse(Format format) { return format == kSparse4 || format == kSparse8; }

// Where reading of a sparse row stands (kSparse4: in the low and in the high halves), and the end of its codes.
struct SparseRow {
  const uint8_t* mask;
  const uint8_t* codes[2];
  const uint8_t* end;

  // The codes of the next block's groups, `stored` in each; moves on. False when they end behind the row.
  bool take(Format format, const size_t* stored, const uint8_t** groups) {
    const bool apart = format == kSparse4;
    groups[0] = codes[0];
    groups[1] = apart ? codes[1] : codes[0] + stored[0];
    codes[apart ? 0 : 1] = groups[0] + stored[0];
    codes[apart ? 1 : 0] = groups[1] + stored[1];
    mask += kMaskBytes;
    return __builtin_expect(codes[0] <= end && codes[1] <= end, 1);
  }
  // Whether everything was read, and nothing is left.
  bool done() const { return (codes[0] > codes[1] ? codes[0] : codes[1]) == end; }
};

constexpr size_t kInt4Span = 128;    // activations of which the even ones come first
constexpr size_t kPartRows = 32;     // rows at most that one BlockKernels::multiply() takes
constexpr size_t kPartTokens = 128;  // tokens at most
constexpr size_t kMostBlock = 256;

// Bytes of so many codes of a row whose blocks have a scale each.
constexpr size_t code_bytes(Format format, size_t codes) {
  return format == kTernary ? codes / 4 : format == kInt4 ? codes / 2 : codes;
}

// Y = X W^T where every block of W has its scale. kTernary, kInt4 or kInt8Blocks.
struct BlockProduct {
  Format format;
  int32_t zero;          // what corrections take a code's zero for
  size_t block, blocks;  // codes of a block; blocks of a row
  const uint8_t* w;
  size_t row_bytes;
  const float* scales;          // [rows of W, blocks], or
  const uint16_t* half_scales;  // in float16, where scales is null
  const int8_t* x;
  size_t stride;               // bytes from one row of x to the next, all of them there
  const float* steps;          // [tokens, blocks]
  const int32_t* corrections;  // [tokens, blocks], what is missing from sums over codes: -zero times the sum of x

  // As float32, which float16 becomes without rounding.
  float scale(size_t at) const {
    if (scales != nullptr) return scales[at];
    float wide;
    to_float(half_scales + at, 1, &wide);
    return wide;
  }
};

// What an instruction set has for it. Sums of blocks are scaled where they are made: there are too many to store them.
struct BlockKernels {
  size_t rows;  // what multiply() takes a multiple of

  // Rounds a row of `count` floats to int8 codes in the format's order, with step = absmax / 127 of the row or with
  // `steps_each` of each block. Stores whole blocks of codes, and for each block the step and -`zero` times the sum of
  // its codes. False when an element is infinite or not a number.
  bool (*quantize)(const float* x, size_t count, size_t block, bool steps_each, Format format, int32_t zero,
                   int8_t* codes, float* steps, int32_t* corrections);

  // y[t * kPartRows + r] = the product of row `first` + r of W and token `from` + t, for `rows` rows and `tokens`
  // tokens: from +0.0, blocks in order, float(sum + correction) * (step * scale). y is aligned to 64 bytes.
  void (*multiply)(const BlockProduct& product, size_t first, size_t rows, size_t from, size_t tokens, float* y);
};

struct Kernels {
  const char* name;

  size_t panel_rows;  // rows of W that pack() and tile() work on
  size_t gemv_most;   // tokens up to which gemv() is faster than pack() and tile() (measured: docs/kernels.md)
  int int8_zero;      // what the kernels take a kInt8 or kInt8Blocks code's zero for: 128 = as stored, 0 = signed
  int sparse4_zero;   // what sparse() takes a kSparse4 weight's zero for; a kSparse8 weight's is int8_zero

  // Rounds a row of `count` floats to int8 codes, with step = absmax / 127 of the row or with `steps_each` of each
  // block. Stores whole blocks of codes, in planes or in order, and for the row or with `each` for each block the step
  // and the sum of its codes (`steps_each` implies `each`). False when an element is infinite or not a number.
  bool (*quantize)(const float* x, size_t count, bool steps_each, bool each, bool planes, int8_t* codes, float* steps,
                   int32_t* sums);

  // sums[(t * pieces + p) * kGemvRows + r] = sum over piece p of code * activation, for `rows` rows from w, `row_bytes`
  // apart, and `tokens` tokens. A piece is the whole span of `blocks`, or with `each` every block.
  void (*gemv)(Format format, const uint8_t* w, size_t row_bytes, size_t rows, const int8_t* x, size_t stride,
               size_t tokens, size_t blocks, bool each, int32_t* sums);

  // Unpacks `blocks` blocks of `rows` rows into a panel of panel_rows * blocks * kBlock bytes, in the order in which
  // tile() reads it; missing rows become any value.
  void (*pack)(Format format, const uint8_t* w, size_t row_bytes, size_t rows, size_t blocks, uint8_t* panel);

  // sums[t * panel_rows + r] = the same sum over a panel's `blocks`, for `tokens` tokens; with `add` added to what is
  // there.
  void (*tile)(Format format, const uint8_t* panel, const int8_t* x, size_t stride, size_t tokens, size_t blocks,
               bool add, int32_t* sums);

  // y[r] = the sum over pieces p, in order, of float(sums[p * sum_stride + r] - corrections[p]) * (steps[p] * scale),
  // where scale is scales[r], or with `one_scale` scales[0]; with `add` added to what is there.
  void (*finish)(const int32_t* sums, size_t sum_stride, size_t pieces, const int32_t* corrections, const float* steps,
                 const float* scales, bool one_scale, size_t rows, bool add, float* y);

  // sums[p * kGemvRows] = sum over piece p of code * activation, for `blocks` blocks of one sparse row and one token;
  // a weight that is not stored counts as its format's zero. Moves `row` on. False when the codes of a block end behind
  // row->end: what was read lies before row->end + kSparseTail, and sums mean nothing.
  bool (*sparse)(Format format, SparseRow* row, const int8_t* x, size_t blocks, bool each, int32_t* sums);

  // The same blocks as kInt8 codes.
  bool (*expand)(Format format, SparseRow* row, size_t blocks, uint8_t* codes);

  const BlockKernels* blocks;
  const AttentionKernels* attention;  // null: fused multiply-adds would be slower than what ONNX Runtime has
};

// One table an instruction set, defined where the compiler's target has it.
extern const BlockKernels kScalarBlocks;                    // what an instruction set has that has no better
extern const BlockKernels kAvx2Blocks, kNeonDotprodBlocks;  // and parts of others
extern const Kernels kScalar, kAvx2, kAvxVnni, kAvx512Vnni, kAvx512Vbmi2, kNeon, kNeonDotprod, kNeonI8mm;

}  // namespace edgekit

// Names of ARM's features, which GCC and clang spell differently; plain NEON is every target's own.
#if defined(__clang__)
#define EK_ARM_DOTPROD "dotprod"
#define EK_ARM_I8MM "dotprod,i8mm"
#define EK_ARM_NEON "neon"
#else
#define EK_ARM_DOTPROD "+dotprod"
#define EK_ARM_I8MM "+dotprod+i8mm"
#define EK_ARM_NEON "+simd"
#endif

// Compiles what stands between EK_TARGET_BEGIN and EK_TARGET_END for an instruction set. Includes come before.
#define EK_PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#define EK_TARGET_BEGIN(features) \
  EK_PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define EK_TARGET_END _Pragma("clang attribute pop")
#else
#define EK_TARGET_BEGIN(features) _Pragma("GCC push_options") EK_PRAGMA(GCC target(features))
#define EK_TARGET_END _Pragma("GCC pop_options")
#endif
