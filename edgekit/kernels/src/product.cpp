#include "product.h"

#include "call.h"
#include "message.h"

namespace edgekit {
namespace {

constexpr size_t kTokens = 128;        // tokens for which a panel is unpacked once
constexpr size_t kPanelBytes = 16384;  // of a panel: half of the smallest L1 cache in use
constexpr size_t kSpan = 64;           // blocks that one gemv() call takes where each has a step of its own

void quantize_row(void* data, size_t t) {
  Call& call = *static_cast<Call*>(data);
  const Arguments& a = call.a;
  if (a.half) to_float(static_cast<const uint16_t*>(a.x) + t * a.k, a.k, call.floats + t * a.k);
  int8_t* codes = call.codes + t * call.stride;
  float* steps = call.steps + t * call.pieces;
  int32_t* corrections = call.corrections + t * call.pieces;
  const bool ok = a.scales_each ? call.kernels.blocks->quantize(call.row(t), a.k, a.block, a.steps_each, call.format,
                                                                call.zero(), codes, steps, corrections)
                                : call.kernels.quantize(call.row(t), a.k, a.steps_each, a.each, call.format == kTernary,
                                                        codes, steps, corrections);
  if (!ok) __atomic_store_n(&call.finite, false, __ATOMIC_RELAXED);
  if (!ok || a.scales_each) return;
  // What every sum over codes is too large by, as codes are stored without a sign.
  for (size_t p = 0; p < call.pieces; ++p) {
    corrections[p] = static_cast<int32_t>(static_cast<uint32_t>(call.zero()) * static_cast<uint32_t>(corrections[p]));
  }
}

// The rest of the arithmetic for one token, the rows of a part from row `first` on, and pieces from `piece`.
void finish(const Call& call, const int32_t* sums, size_t sum_stride, size_t t, size_t piece, size_t pieces,
            size_t first, size_t rows, float* y) {
  const size_t at = t * call.pieces + piece;
  call.kernels.finish(sums, sum_stride, pieces, call.corrections + at, call.steps + at,
                      call.a.scales + (call.a.one_scale ? 0 : first), call.a.one_scale, rows, piece > 0, y);
}

// Rows of W straight from where they are, for a few tokens.
void gemv_part(void* data, size_t part) {
  const Call& call = *static_cast<const Call*>(data);
  const Arguments& a = call.a;
  const size_t first = part * kGemvRows, rows = smaller(kGemvRows, a.n - first);
  const size_t span = a.each ? kSpan : a.blocks;
  int32_t sums[kGemvTokens * kSpan * kGemvRows];
  for (size_t t = 0; t < a.m; t += kGemvTokens) {
    const size_t tokens = smaller(kGemvTokens, a.m - t);
    float local[kGemvTokens * kGemvRows];
    for (size_t b = 0; b < a.blocks; b += span) {
      const size_t blocks = smaller(span, a.blocks - b), pieces = a.each ? blocks : 1;
      call.kernels.gemv(call.format, a.w + first * a.row_bytes + b * block_bytes(call.format), a.row_bytes, rows,
                        call.codes + t * call.stride + b * kBlock, call.stride, tokens, blocks, a.each, sums);
      for (size_t i = 0; i < tokens; ++i) {
        finish(call, sums + i * pieces * kGemvRows, kGemvRows, t + i, a.each ? b : 0, pieces, first, rows,
               destination(a, t + i, first, local + i * kGemvRows));
      }
    }
    for (size_t i = 0; i < tokens; ++i) {
      complete(a, t + i, first, rows, destination(a, t + i, first, local + i * kGemvRows));
    }
  }
}

// Asks for the weights that are unpacked next, while those at hand are multiplied.
void prefetch_rows(const Call& call, const uint8_t* w, size_t rows, size_t blocks) {
  for (size_t r = 0; r < rows; ++r) {
    for (size_t i = 0; i < blocks * block_bytes(call.format); i += 64) __builtin_prefetch(w + r * call.a.row_bytes + i);
  }
}

// A row of a sparse W, which begins with where each row begins and where the last one ends, 32 bits each. False where
// those places cannot be right.
bool find_row(const Arguments& a, size_t r, SparseRow* row) {
  uint32_t first, end;
  __builtin_memcpy(&first, a.w + r * sizeof first, sizeof first);
  __builtin_memcpy(&end, a.w + (r + 1) * sizeof end, sizeof end);
  const size_t mask = a.blocks * kMaskBytes;
  if (first < sparse_header(a.n) || end > a.w_bytes - kSparseTail || end < first || end - first < mask) return false;
  *row = {a.w + first, {a.w + first + mask, a.w + first + mask}, a.w + end};
  return true;
}

// A damaged row is found by the part that has it; which one, only then (first_damaged()).
void not_intact(Call& call) { __atomic_store_n(&call.intact, false, __ATOMIC_RELAXED); }

// Asks for what is read some rows later, one line of memory after the other.
void prefetch_sparse(const SparseRow& row) {
  for (const uint8_t* at = row.mask; at < row.end; at += 64) __builtin_prefetch(at + kPrefetch, 0, 2);
}

// Sparse rows for one token.
void sparse_part(void* data, size_t part) {
  Call& call = *static_cast<Call*>(data);
  const Arguments& a = call.a;
  const size_t first = part * kGemvRows, rows = smaller(kGemvRows, a.n - first);
  const size_t span = a.each ? kSpan : a.blocks;
  SparseRow at[kGemvRows];
  int32_t sums[kSpan * kGemvRows];
  float local[kGemvRows];
  float* y = destination(a, 0, first, local);
  for (size_t r = 0; r < rows; ++r) {
    if (!find_row(a, first + r, &at[r])) return not_intact(call);
  }
  for (size_t b = 0; b < a.blocks; b += span) {
    const size_t blocks = smaller(span, a.blocks - b);
    for (size_t r = 0; r < rows; ++r) {
      if (b == 0) prefetch_sparse(at[r]);
      if (!call.kernels.sparse(call.format, &at[r], call.codes + b * kBlock, blocks, a.each, sums + r)) {
        return not_intact(call);
      }
    }
    finish(call, sums, kGemvRows, 0, a.each ? b : 0, a.each ? blocks : 1, first, rows, y);
  }
  for (size_t r = 0; r < rows; ++r) {
    if (!at[r].done()) return not_intact(call);
  }
  complete(a, 0, first, rows, y);
}

// What many tokens use of some rows of W, a piece after the other.
struct Panel {
  alignas(kAlignment) uint8_t bytes[kPanelBytes];
  alignas(kAlignment) int32_t sums[kTokens * kMostPanelRows];
  alignas(kAlignment) float local[kTokens * kMostPanelRows];
};

// The part of a product that a panel and some tokens are: rows from `first`, tokens from `t`, blocks from `b`.
struct Piece {
  size_t first, rows, t, tokens, b, blocks;
  bool last;  // of K
};

void multiply_panel(const Call& call, Panel& panel, const Piece& at) {
  const Arguments& a = call.a;
  const size_t width = call.kernels.panel_rows, step = a.each ? 1 : at.blocks;
  for (size_t p = 0; p < at.blocks; p += step) {
    const size_t block = at.b + p;
    call.kernels.tile(call.dense(), panel.bytes + p * kBlock * width, call.codes + at.t * call.stride + block * kBlock,
                      call.stride, at.tokens, step, !a.each && block > 0, panel.sums);
    if (!a.each && !at.last) continue;
    for (size_t i = 0; i < at.tokens; ++i) {
      finish(call, panel.sums + i * width, 0, at.t + i, a.each ? block : 0, 1, at.first, at.rows,
             destination(a, at.t + i, at.first, panel.local + i * width));
    }
  }
}

void complete_panel(const Call& call, Panel& panel, const Piece& at) {
  const size_t width = call.kernels.panel_rows;
  for (size_t i = 0; i < at.tokens; ++i) {
    complete(call.a, at.t + i, at.first, at.rows, destination(call.a, at.t + i, at.first, panel.local + i * width));
  }
}

// A panel of W for many tokens: unpacked piece by piece into the cache and used for all of them.
void gemm_part(void* data, size_t part) {
  const Call& call = *static_cast<const Call*>(data);
  const Arguments& a = call.a;
  const size_t width = call.kernels.panel_rows, span = parts(kPanelBytes / kBlock, width);
  Piece at{part * width, smaller(width, a.n - part * width), 0, 0, 0, 0, false};
  Panel panel;
  for (at.t = 0; at.t < a.m; at.t += kTokens) {
    at.tokens = smaller(kTokens, a.m - at.t);
    for (at.b = 0; at.b < a.blocks; at.b += span) {
      at.blocks = smaller(span, a.blocks - at.b);
      at.last = at.b + span >= a.blocks;
      const uint8_t* w = a.w + at.first * a.row_bytes + at.b * block_bytes(call.format);
      call.kernels.pack(call.format, w, a.row_bytes, at.rows, at.blocks, panel.bytes);
      if (!at.last) {
        prefetch_rows(call, w + span * block_bytes(call.format), at.rows, span);
      } else if (at.first + 2 * width <= a.n) {
        prefetch_rows(call, a.w + (at.first + width) * a.row_bytes, width, span);
      }
      multiply_panel(call, panel, at);
    }
    complete_panel(call, panel, at);
  }
}

// The same for sparse rows, which are written out as 8-bit codes before a panel is made of them.
void sparse_gemm_part(void* data, size_t part) {
  Call& call = *static_cast<Call*>(data);
  const Arguments& a = call.a;
  const size_t width = call.kernels.panel_rows, span = parts(kPanelBytes / kBlock, width);
  Piece at{part * width, smaller(width, a.n - part * width), 0, 0, 0, 0, false};
  Panel panel;
  alignas(kAlignment) uint8_t dense[kPanelBytes];
  SparseRow rows[kMostPanelRows];
  for (at.t = 0; at.t < a.m; at.t += kTokens) {
    at.tokens = smaller(kTokens, a.m - at.t);
    for (size_t r = 0; r < at.rows; ++r) {
      if (!find_row(a, at.first + r, &rows[r])) return not_intact(call);
    }
    for (at.b = 0; at.b < a.blocks; at.b += span) {
      at.blocks = smaller(span, a.blocks - at.b);
      at.last = at.b + span >= a.blocks;
      for (size_t r = 0; r < at.rows; ++r) {
        const bool fits = call.kernels.expand(call.format, &rows[r], at.blocks, dense + r * span * kBlock);
        if (!fits || (at.last && !rows[r].done())) return not_intact(call);
      }
      call.kernels.pack(kInt8, dense, span * kBlock, at.rows, at.blocks, panel.bytes);
      multiply_panel(call, panel, at);
    }
    complete_panel(call, panel, at);
  }
}

// The first row whose mask and codes do not fit: looked for only when some part has met one.
size_t first_damaged(const Arguments& a, Format format) {
  for (size_t r = 0; r < a.n; ++r) {
    SparseRow row{};
    if (!find_row(a, r, &row)) return r;
    for (size_t b = 0; b < a.blocks; ++b) {
      uint8_t codes[kBlock];
      if (!kScalar.expand(format, &row, 1, codes)) return r;
    }
    if (!row.done()) return r;
  }
  return a.n;
}

size_t batches(const Call& call) { return product_batches(call.a.w_bytes * (call.a.m < 4 ? 1 : call.a.m / 4)); }

OrtStatus* run(const Api& api, const OrtKernelContext* context, Call& call) {
  const Arguments& a = call.a;
  if (OrtStatus* status = api.parallel_for(context, quantize_row, a.m, round_batches(a.m, a.k), &call)) return status;
  if (!call.finite) {
    Message message;
    message << operator_name(call.format) << ": X holds NaN or infinity, which has no 8-bit code; ";
    return api.error(kInvalidArgument, (message << "look for the first layer whose output is not finite").text());
  }
  if (is_sparse(call.format)) {
    const size_t width = call.sparse_rows() ? kGemvRows : call.kernels.panel_rows;
    const auto body = call.sparse_rows() ? sparse_part : sparse_gemm_part;
    if (OrtStatus* status = api.parallel_for(context, body, parts(a.n, width), batches(call), &call)) return status;
    if (call.intact) return nullptr;
    Message message;
    message << operator_name(call.format) << ": row " << static_cast<int64_t>(first_damaged(a, call.format));
    return api.error(kInvalidArgument, (message << " of W has a mask that does not fit its codes; the file is damaged, "
                                                   "export or copy it again")
                                           .text());
  }
  if (a.scales_each) return api.parallel_for(context, block_part, parts(a.n, kPartRows), batches(call), &call);
  const bool gemv = a.m <= (a.each ? smaller(kGemvTokens, call.kernels.gemv_most) : call.kernels.gemv_most);
  const size_t total = parts(a.n, gemv ? kGemvRows : call.kernels.panel_rows);
  return api.parallel_for(context, gemv ? gemv_part : gemm_part, total, batches(call), &call);
}

}  // namespace

OrtStatus* multiply(const Api& api, const OrtKernelContext* context, OrtAllocator* allocator, const Kernels& kernels,
                    Format format, const Arguments& a) {
  if (a.m == 0) return nullptr;
  const size_t pieces = a.each ? a.blocks : 1;
  const size_t whole = parts(a.blocks * a.block, kBlock) * kBlock;  // codes of a row
  const size_t stride = whole + kAlignment;  // rows that lie 4096 bytes apart would share cache sets
  const uint64_t a_row =
      uint64_t{stride} + pieces * (sizeof(float) + sizeof(int32_t)) + (a.half ? a.k * sizeof(float) : 0);
  if (a_row * a.m >= (sizeof(size_t) == 8 ? uint64_t{1} << 46 : uint64_t{1} << 30)) {
    Message message;
    message << operator_name(format) << ": X has " << static_cast<int64_t>(a.m) << " rows, too many for one call";
    return api.error(kInvalidArgument, message.text());
  }
  const size_t code_bytes = aligned(a.m * stride), piece_bytes = aligned(a.m * pieces * sizeof(float));
  const size_t float_bytes = a.half ? a.m * a.k * sizeof(float) : 0;
  void* memory = nullptr;
  if (OrtStatus* status = api.allocate(allocator, code_bytes + 2 * piece_bytes + float_bytes + kAlignment, &memory)) {
    return status;
  }
  int8_t* codes = reinterpret_cast<int8_t*>(aligned(reinterpret_cast<size_t>(memory)));
  Call call{kernels,
            format,
            a,
            stride,
            pieces,
            reinterpret_cast<float*>(codes + code_bytes + 2 * piece_bytes),
            codes,
            reinterpret_cast<float*>(codes + code_bytes),
            reinterpret_cast<int32_t*>(codes + code_bytes + piece_bytes)};
  OrtStatus* status = run(api, context, call);
  OrtStatus* freed = api.free(allocator, memory);
  if (status == nullptr) return freed;
  if (freed != nullptr) api.release_status(freed);
  return status;
}

}  // namespace edgekit
