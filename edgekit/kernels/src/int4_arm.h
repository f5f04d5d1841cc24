// Products with 4-bit weights, four rows of W and a few tokens at a time, included by ARM's files after arm.h and
// int4_quantize.h. The file that includes it defines what adds products up:
//   Int4Sum, int4_zero(), int4_add(sum, codes, x) for 16 codes 0..15 and as many activations, and int4_total(sum), four
//   int32 lanes; a sum takes 128 codes of each row.
namespace edgekit {
namespace {

constexpr size_t kInt4Group = 4;             // rows of W at a time
constexpr size_t kInt4Half = kInt4Span / 2;  // bytes of W, and activations with even numbers, in a span

// Where the even activations of a row lie that meet the weights from byte `at` of a row on; the odd ones follow after
// kInt4Half.
inline const int8_t* int4_even(const int8_t* x, size_t at) {
  return x + (at & ~(kInt4Half - 1)) * 2 + (at & (kInt4Half - 1));
}

// 16 bytes of a row, or the 8 that are all of a block of 16 codes and zeros.
inline uint8x16_t int4_load(const uint8_t* w, bool whole) {
  return whole ? vld1q_u8(w) : vcombine_u8(vld1_u8(w), vdup_n_u8(0));
}

// Adds 16 bytes of each row, or 8.
template <size_t T>
inline void int4_chunk(const uint8_t* const* rows, const int8_t* const* x, size_t at, bool whole,
                       Int4Sum (*sum)[kInt4Group]) {
  int8x16_t even[T], odd[T];
#pragma GCC unroll 4
  for (size_t t = 0; t < T; ++t) {
    const int8_t* q = int4_even(x[t], at);
    even[t] = vld1q_s8(q), odd[t] = vld1q_s8(q + kInt4Half);
  }
#pragma GCC unroll 4
  for (size_t r = 0; r < kInt4Group; ++r) {
    const uint8x16_t v = int4_load(rows[r] + at, whole);
    const int8x16_t low = as_signed(vandq_u8(v, vdupq_n_u8(15))), high = as_signed(vshrq_n_u8(v, 4));
#pragma GCC unroll 4
    for (size_t t = 0; t < T; ++t) sum[t][r] = int4_add(int4_add(sum[t][r], low, even[t]), high, odd[t]);
  }
}

// Sums over a part of `Bytes` bytes of each row, of at most a span.
template <size_t T, size_t Bytes>
inline void int4_part_sums(const uint8_t* const* rows, const int8_t* const* x, size_t at,
                           int32x4_t (*sums)[kInt4Group]) {
  Int4Sum sum[T][kInt4Group];
#pragma GCC unroll 4
  for (auto& of_token : sum) {
#pragma GCC unroll 4
    for (auto& of_row : of_token) of_row = int4_zero();
  }
  for (size_t i = 0; i < Bytes; i += 32) {
    int4_chunk<T>(rows, x, at + i, Bytes >= 16, sum);
    if (Bytes >= 32) int4_chunk<T>(rows, x, at + i + 16, true, sum);
  }
#pragma GCC unroll 4
  for (size_t t = 0; t < T; ++t) {
#pragma GCC unroll 4
    for (size_t r = 0; r < kInt4Group; ++r) sums[t][r] = int4_total(sum[t][r]);
  }
}

// The same of a block: two spans where it has more than Bytes bytes.
template <size_t T, size_t Bytes>
inline void int4_sums(const uint8_t* const* rows, const int8_t* const* x, size_t at, size_t bytes,
                      int32x4_t (*sums)[kInt4Group]) {
  int4_part_sums<T, Bytes>(rows, x, at, sums);
  if (Bytes < kInt4Half || bytes == Bytes) return;
  int32x4_t more[T][kInt4Group];
  int4_part_sums<T, Bytes>(rows, x, at + Bytes, more);
#pragma GCC unroll 4
  for (size_t t = 0; t < T; ++t) {
#pragma GCC unroll 4
    for (size_t r = 0; r < kInt4Group; ++r) sums[t][r] = vaddq_s32(sums[t][r], more[t][r]);
  }
}

// y of four rows and one token. Each operation is one IEEE float32 operation; 32-bit ARM has such for single floats
// only.
struct Int4Y {
#if defined(__aarch64__)
  float32x4_t y = vdupq_n_f32(0);

  void load(const float* from) { y = vld1q_f32(from); }
  void store(float* to) const { vst1q_f32(to, y); }
  void add(int32x4_t sums, int32_t correction, float step, const float* scales) {
    const float32x4_t exact = vcvtq_f32_s32(vaddq_s32(sums, vdupq_n_s32(correction)));
    y = vaddq_f32(y, vmulq_f32(exact, vmulq_n_f32(vld1q_f32(scales), step)));
  }
#else
  float y[kInt4Group] = {};

  void store(float* to) const { __builtin_memcpy(to, y, sizeof y); }
  void add(int32x4_t sums, int32_t correction, float step, const float* scales) {
    int32_t total[kInt4Group];
    vst1q_s32(total, sums);
    for (size_t r = 0; r < kInt4Group; ++r) y[r] += static_cast<float>(total[r] + correction) * (step * scales[r]);
  }
#endif
};

// Scales of four rows from `row` and of `count` blocks from `b`, at most four: one block's after the other.
inline void int4_scales(const Int4Product& p, size_t row, size_t b, size_t count, float (*out)[kInt4Group]) {
  const float* in = p.scales + row * p.blocks + b;
  if (count < 4) {
    for (size_t i = 0; i < count; ++i) {
      for (size_t r = 0; r < kInt4Group; ++r) out[i][r] = in[r * p.blocks + i];
    }
    return;
  }
  const float32x4x2_t low = vtrnq_f32(vld1q_f32(in), vld1q_f32(in + p.blocks));
  const float32x4x2_t high = vtrnq_f32(vld1q_f32(in + 2 * p.blocks), vld1q_f32(in + 3 * p.blocks));
#pragma GCC unroll 2
  for (size_t i = 0; i < 2; ++i) {
    vst1q_f32(out[i], vcombine_f32(vget_low_f32(low.val[i]), vget_low_f32(high.val[i])));
    vst1q_f32(out[2 + i], vcombine_f32(vget_high_f32(low.val[i]), vget_high_f32(high.val[i])));
  }
}

template <size_t T, size_t Bytes>
void int4_rows(const Int4Product& p, size_t row, size_t from, float* y) {
  const size_t bytes = Bytes < kInt4Half ? Bytes : p.block / 2;
  const uint8_t* rows[kInt4Group];
  const int8_t* x[T];
  const int32_t* corrections = p.corrections + from * p.blocks;
  const float* steps = p.steps + from * p.blocks;
  Int4Y result[T];
#pragma GCC unroll 4
  for (size_t r = 0; r < kInt4Group; ++r) rows[r] = p.w + (row + r) * p.row_bytes;
#pragma GCC unroll 4
  for (size_t t = 0; t < T; ++t) x[t] = p.x + (from + t) * p.stride;
  const uint8_t* ahead = rows[kInt4Group - 1] + p.row_bytes + kPrefetch;
  for (size_t b = 0; b < p.blocks; b += 4) {
    const size_t count = p.blocks - b < 4 ? p.blocks - b : 4;
    float scales[4][kInt4Group];
    int4_scales(p, row, b, count, scales);
    for (size_t i = 0; i < count; ++i) {
      int32x4_t sums[T][kInt4Group];
      int4_sums<T, Bytes>(rows, x, (b + i) * bytes, bytes, sums);
      ahead = prefetch(ahead, bytes);
#pragma GCC unroll 4
      for (size_t t = 0; t < T; ++t) {
        const int32x4_t total = sum_rows(sums[t][0], sums[t][1], sums[t][2], sums[t][3]);
        result[t].add(total, corrections[t * p.blocks + b + i], steps[t * p.blocks + b + i], scales[i]);
      }
    }
  }
#pragma GCC unroll 4
  for (size_t t = 0; t < T; ++t) result[t].store(y + t * kInt4Rows);
}

template <size_t Bytes>
void int4_tokens(const Int4Product& p, size_t row, size_t from, size_t tokens, float* y) {
  size_t t = 0;
  for (; tokens - t >= 4; t += 4) int4_rows<4, Bytes>(p, row, from + t, y + t * kInt4Rows);
  for (; t < tokens; ++t) int4_rows<1, Bytes>(p, row, from + t, y + t * kInt4Rows);
}

// Few tokens: W is unpacked again for every four of them.
inline void int4_few(const Int4Product& p, size_t first, size_t rows, size_t from, size_t tokens, float* y) {
  const auto multiply = p.block == 16   ? int4_tokens<8>
                        : p.block == 32 ? int4_tokens<16>
                        : p.block == 64 ? int4_tokens<32>
                                        : int4_tokens<kInt4Half>;
  for (size_t r = 0; r < rows; r += kInt4Group) multiply(p, first + r, from, tokens, y + r);
}

}  // namespace
}  // namespace edgekit
