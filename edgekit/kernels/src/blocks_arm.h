// Products with weights whose blocks have a scale each, four rows of W and a few tokens at a time, included by ARM's
// files after arm.h and block_quantize.h. The file that includes it has dot_int8 and defines what adds products of less
// than 8 bits up:
//   CodeSum, no_codes(), add_codes(sum, codes, x) for 16 codes 0..15 and as many activations, and total_codes(sum),
//   four int32 lanes; a sum takes 128 codes of each row.
namespace edgekit {
namespace {

constexpr size_t kRowGroup = 4;              // rows of W at a time
constexpr size_t kInt4Half = kInt4Span / 2;  // bytes of kInt4, and activations with even numbers, in a span

// Activations that meet a byte.
template <Format F>
constexpr size_t kPlanes = F == kTernary ? 4
                           : F == kInt4  ? 2
                                         : 1;

// Bytes of a row at most that are added up at once.
template <Format F>
constexpr size_t kPart = F == kInt4 ? 64 : 32;

// Where the activations of a row lie that meet the lowest codes of the bytes from `at` on; those of the codes above
// follow after kApart each.
template <Format F>
constexpr size_t kApart = F == kTernary ? kPlane : kInt4Half;
template <Format F>
inline size_t place(size_t at) {
  constexpr size_t kRun = F == kInt8Blocks ? 1 : kApart<F>;
  return (at & ~(kRun - 1)) * kPlanes<F> + (at & (kRun - 1));
}

// Where the activations of a block lie that meet its 16 codes in the i-th place of a tile.
struct Places {
  size_t first, next, pair;  // from one to the next, and to the one after it; more of them each kInt4Span

  size_t at(size_t i) const { return first + i / 8 * kInt4Span + i / 2 % 4 * pair + i % 2 * next; }
};

// 16 bytes of a row, or the 8 that are all of a block of 16 codes of kInt4 and zeros.
inline uint8x16_t load_codes(const uint8_t* w, bool whole) {
  return whole ? vld1q_u8(w) : vcombine_u8(vld1_u8(w), vdup_n_u8(0));
}

template <Format F>
struct Sum {
  CodeSum sum = no_codes();

  void add(uint8x16_t bytes, int f, int8x16_t x) {
    const uint8x16_t codes = F == kTernary ? plane(bytes, f)
                             : f == 0      ? vandq_u8(bytes, vdupq_n_u8(15))
                                           : vshrq_n_u8(bytes, 4);
    sum = add_codes(sum, as_signed(codes), x);
  }
  int32x4_t total() const { return total_codes(sum); }
};

template <>
struct Sum<kInt8Blocks> {
  int32x4_t sum = vdupq_n_s32(0);

  void add(uint8x16_t bytes, int, int8x16_t x) { sum = dot_int8(sum, as_signed(signed_int8(bytes)), x); }
  int32x4_t total() const { return sum; }
};

// Adds 16 bytes of each row, or 8.
template <Format F, size_t T>
inline void add_chunk(const uint8_t* const* rows, const int8_t* const* x, size_t at, bool whole,
                      Sum<F> (*sum)[kRowGroup]) {
  uint8x16_t bytes[kRowGroup];
#pragma GCC unroll 4
  for (size_t r = 0; r < kRowGroup; ++r) bytes[r] = load_codes(rows[r] + at, whole);
#pragma GCC unroll 4
  for (size_t f = 0; f < kPlanes<F>; ++f) {
#pragma GCC unroll 4
    for (size_t t = 0; t < T; ++t) {
      const int8x16_t q = vld1q_s8(x[t] + place<F>(at) + f * kApart<F>);
#pragma GCC unroll 4
      for (size_t r = 0; r < kRowGroup; ++r) sum[t][r].add(bytes[r], static_cast<int>(f), q);
    }
  }
}

// Sums over a part of `Bytes` bytes of each row.
template <Format F, size_t T, size_t Bytes>
inline void part_sums(const uint8_t* const* rows, const int8_t* const* x, size_t at, int32x4_t (*sums)[kRowGroup]) {
  Sum<F> sum[T][kRowGroup];
  for (size_t i = 0; i < Bytes; i += 32) {
    add_chunk<F, T>(rows, x, at + i, Bytes >= 16, sum);
    if (Bytes >= 32) add_chunk<F, T>(rows, x, at + i + 16, true, sum);
  }
#pragma GCC unroll 4
  for (size_t t = 0; t < T; ++t) {
#pragma GCC unroll 4
    for (size_t r = 0; r < kRowGroup; ++r) sums[t][r] = sum[t][r].total();
  }
}

// The same of a block: several parts where it has more than Bytes bytes.
template <Format F, size_t T, size_t Bytes>
inline void block_sums(const uint8_t* const* rows, const int8_t* const* x, size_t at, size_t bytes,
                       int32x4_t (*sums)[kRowGroup]) {
  part_sums<F, T, Bytes>(rows, x, at, sums);
  if (Bytes < kPart<F>) return;
  for (size_t part = Bytes; part < bytes; part += Bytes) {
    int32x4_t more[T][kRowGroup];
    part_sums<F, T, Bytes>(rows, x, at + part, more);
#pragma GCC unroll 4
    for (size_t t = 0; t < T; ++t) {
#pragma GCC unroll 4
      for (size_t r = 0; r < kRowGroup; ++r) sums[t][r] = vaddq_s32(sums[t][r], more[t][r]);
    }
  }
}

// y of four rows and one token. Each operation is one IEEE float32 operation; 32-bit ARM has such for single floats
// only.
struct RowSums {
#if defined(__aarch64__)
  float32x4_t y = vdupq_n_f32(0);

  void load(const float* from) { y = vld1q_f32(from); }
  void store(float* to) const { vst1q_f32(to, y); }
  void add(int32x4_t sums, int32_t correction, float step, const float* scales) {
    const float32x4_t exact = vcvtq_f32_s32(vaddq_s32(sums, vdupq_n_s32(correction)));
    y = vaddq_f32(y, vmulq_f32(exact, vmulq_n_f32(vld1q_f32(scales), step)));
  }
#else
  float y[kRowGroup] = {};

  void store(float* to) const { __builtin_memcpy(to, y, sizeof y); }
  void add(int32x4_t sums, int32_t correction, float step, const float* scales) {
    int32_t total[kRowGroup];
    vst1q_s32(total, sums);
    for (size_t r = 0; r < kRowGroup; ++r) y[r] += static_cast<float>(total[r] + correction) * (step * scales[r]);
  }
#endif
};

// Four scales of a row.
inline float32x4_t four_scales(const BlockProduct& p, size_t at) {
  if (p.scales != nullptr) return vld1q_f32(p.scales + at);
  float wide[4];
  to_float(p.half_scales + at, 4, wide);  // one instruction on 64-bit ARM
  return vld1q_f32(wide);
}

// Scales of four rows from `row` and of `count` blocks from `b`, at most four: one block's after the other.
inline void block_scales(const BlockProduct& p, size_t row, size_t b, size_t count, float (*out)[kRowGroup]) {
  const size_t at = row * p.blocks + b;
  if (count < 4) {
    for (size_t i = 0; i < count; ++i) {
      for (size_t r = 0; r < kRowGroup; ++r) out[i][r] = p.scale(at + r * p.blocks + i);
    }
    return;
  }
  const float32x4x2_t low = vtrnq_f32(four_scales(p, at), four_scales(p, at + p.blocks));
  const float32x4x2_t high = vtrnq_f32(four_scales(p, at + 2 * p.blocks), four_scales(p, at + 3 * p.blocks));
#pragma GCC unroll 2
  for (size_t i = 0; i < 2; ++i) {
    vst1q_f32(out[i], vcombine_f32(vget_low_f32(low.val[i]), vget_low_f32(high.val[i])));
    vst1q_f32(out[2 + i], vcombine_f32(vget_high_f32(low.val[i]), vget_high_f32(high.val[i])));
  }
}

template <Format F, size_t T, size_t Bytes>
void few_rows(const BlockProduct& p, size_t row, size_t from, float* y) {
  const size_t bytes = Bytes < kPart<F> ? Bytes : code_bytes(F, p.block);
  const uint8_t* rows[kRowGroup];
  const int8_t* x[T];
  const int32_t* corrections = p.corrections + from * p.blocks;
  const float* steps = p.steps + from * p.blocks;
  RowSums result[T];
#pragma GCC unroll 4
  for (size_t r = 0; r < kRowGroup; ++r) rows[r] = p.w + (row + r) * p.row_bytes;
#pragma GCC unroll 4
  for (size_t t = 0; t < T; ++t) x[t] = p.x + (from + t) * p.stride;
  const uint8_t* ahead = rows[kRowGroup - 1] + p.row_bytes + kPrefetch;
  for (size_t b = 0; b < p.blocks; b += 4) {
    const size_t count = p.blocks - b < 4 ? p.blocks - b : 4;
    float scales[4][kRowGroup];
    block_scales(p, row, b, count, scales);
    for (size_t i = 0; i < count; ++i) {
      int32x4_t sums[T][kRowGroup];
      block_sums<F, T, Bytes>(rows, x, (b + i) * bytes, bytes, sums);
      ahead = prefetch(ahead, bytes);
#pragma GCC unroll 4
      for (size_t t = 0; t < T; ++t) {
        const int32x4_t total = sum_rows(sums[t][0], sums[t][1], sums[t][2], sums[t][3]);
        result[t].add(total, corrections[t * p.blocks + b + i], steps[t * p.blocks + b + i], scales[i]);
      }
    }
  }
#pragma GCC unroll 4
  for (size_t t = 0; t < T; ++t) result[t].store(y + t * kPartRows);
}

template <Format F, size_t Bytes>
void some_tokens(const BlockProduct& p, size_t row, size_t from, size_t tokens, float* y) {
  size_t t = 0;
  for (; tokens - t >= 4; t += 4) few_rows<F, 4, Bytes>(p, row, from + t, y + t * kPartRows);
  for (; t < tokens; ++t) few_rows<F, 1, Bytes>(p, row, from + t, y + t * kPartRows);
}

// Few tokens: W is unpacked again for every four of them.
inline void few_tokens(const BlockProduct& p, size_t first, size_t rows, size_t from, size_t tokens, float* y) {
  const size_t bytes = code_bytes(p.format, p.block);
  const auto of_int8 = bytes == 16 ? some_tokens<kInt8Blocks, 16> : some_tokens<kInt8Blocks, kPart<kInt8Blocks>>;
  const auto of_int4 = bytes == 8    ? some_tokens<kInt4, 8>
                       : bytes == 16 ? some_tokens<kInt4, 16>
                       : bytes == 32 ? some_tokens<kInt4, 32>
                                     : some_tokens<kInt4, kPart<kInt4>>;
  const auto multiply = p.format == kTernary ? some_tokens<kTernary, kPart<kTernary>>
                        : p.format == kInt4  ? of_int4
                                             : of_int8;
  for (size_t r = 0; r < rows; r += kRowGroup) multiply(p, first + r, from, tokens, y + r);
}

}  // namespace
}  // namespace edgekit
