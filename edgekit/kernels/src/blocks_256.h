// Weights whose blocks have a scale each, on 256 bits: few tokens by rows that are read in place, more by panels whose
// rows lie in lanes. The including file has what x86_256.h needs, and defines
//   add_products(sum, codes, x): products of 32 codes 0..15 and activations, added to sums, and
//   kWide: whether those are eight of 32 bits; else they are 16 of 16 bits, and kChain of them may be added.
#include "x86_256.h"

namespace edgekit {
namespace {

constexpr size_t kLanes = 8;  // rows in a register of sums
constexpr size_t kUnit = 32;  // bytes of a row in a register
constexpr size_t kHalf = kInt4Span / 2;
constexpr size_t kInPlace = 2;       // tokens up to which rows are read in place (measured: docs/kernels.md)
constexpr size_t kPanelCodes = 512;  // of K in a panel of 8 KiB
constexpr size_t kChain = 8;
static_assert(kChain * 2 * 15 * 127 <= 32767, "sums of 16 bits");

// Codes of a unit.
template <Format F>
constexpr size_t kUnitCodes = kUnit * 8 /
                              (F == kTernary ? 2
                               : F == kInt4  ? 4
                                             : 8);

// Sums of 8-bit weights have 32 bits everywhere.
template <Format F>
constexpr bool kWideSums = kWide || F == kInt8Blocks;

template <Format F>
inline __m256i add_some(__m256i sum, __m256i codes, __m256i x) {
  return F == kInt8Blocks ? dot_int8(sum, codes, x) : add_products(sum, codes, x);
}

inline __m256i widened(__m256i sums) { return kWide ? sums : _mm256_madd_epi16(sums, _mm256_set1_epi16(1)); }

inline __m256 scaled(__m256i sum, float step, __m256 scales) {
  return _mm256_mul_ps(_mm256_cvtepi32_ps(sum), _mm256_mul_ps(_mm256_set1_ps(step), scales));
}

// Where byte `at` of a row of kInt4 has its even activations; its odd ones are kHalf further.
inline size_t place(size_t at) { return (at & ~(kHalf - 1)) * 2 + (at & (kHalf - 1)); }

// Four vectors of eight lanes -> in each half four sums of its four lanes, of which two of less than 8 bits fit 16.
static_assert(16 * 15 * 127 <= 32767 && 32 * 3 * 127 <= 32767, "sum_halves()");
template <Format F>
inline __m256i sum_halves(const __m256i* s) {
  if constexpr (F == kInt8Blocks)
    return _mm256_hadd_epi32(_mm256_hadd_epi32(s[0], s[1]), _mm256_hadd_epi32(s[2], s[3]));
  const __m256i ones = _mm256_set1_epi16(1);
  const __m256i a = _mm256_madd_epi16(_mm256_packs_epi32(s[0], s[1]), ones);
  const __m256i b = _mm256_madd_epi16(_mm256_packs_epi32(s[2], s[3]), ones);
  return _mm256_madd_epi16(_mm256_packs_epi32(a, b), ones);
}

// Up to four scales of each of two rows, four rows apart, side by side.
inline __m256 load_scales(const float* row, size_t stride, size_t blocks) {
  const __m128i some =
      _mm_cmpgt_epi32(_mm_set1_epi32(blocks < 4 ? static_cast<int>(blocks) : 4), _mm_setr_epi32(0, 1, 2, 3));
  return _mm256_set_m128(_mm_maskload_ps(row + 4 * stride, some), _mm_maskload_ps(row, some));
}
inline __m256 load_scales(const uint16_t* row, size_t stride, size_t blocks) {
  const auto one = [blocks](const uint16_t* at) {
    uint64_t four = 0;
    if (blocks >= 4) {
      __builtin_memcpy(&four, at, sizeof four);
    } else {
      for (size_t i = 0; i < blocks; ++i) four |= uint64_t{at[i]} << 16 * i;
    }
    return _mm_cvtsi64_si128(static_cast<int64_t>(four));
  };
  return _mm256_cvtph_ps(_mm_unpacklo_epi64(one(row), one(row + 4 * stride)));
}

// Scales of eight rows and of four blocks from `block` on, or of as many as there are -> a vector for each block.
__attribute__((noinline)) void transpose_scales(const BlockProduct& p, size_t first, size_t block, size_t blocks,
                                                __m256* out) {
  const size_t at = first * p.blocks + block;
  __m256 z[4];
#pragma GCC unroll 4
  for (size_t i = 0; i < 4; ++i) {
    z[i] = p.scales != nullptr ? load_scales(p.scales + at + i * p.blocks, p.blocks, blocks)
                               : load_scales(p.half_scales + at + i * p.blocks, p.blocks, blocks);
  }
  const __m256 a = _mm256_unpacklo_ps(z[0], z[1]), b = _mm256_unpackhi_ps(z[0], z[1]);
  const __m256 c = _mm256_unpacklo_ps(z[2], z[3]), d = _mm256_unpackhi_ps(z[2], z[3]);
  out[0] = _mm256_shuffle_ps(a, c, 0x44);
  out[1] = _mm256_shuffle_ps(a, c, 0xEE);
  out[2] = _mm256_shuffle_ps(b, d, 0x44);
  out[3] = _mm256_shuffle_ps(b, d, 0xEE);
}

// Fewer bytes than a unit of eight rows, and zeros behind them.
__attribute__((noinline)) void copy_ends(const BlockProduct& p, size_t row, size_t at, size_t left, uint8_t* out) {
  for (size_t r = 0; r < kLanes; ++r, out += kUnit) {
    for (size_t i = 0; i < kUnit; ++i) out[i] = i < left ? p.w[(row + r) * p.row_bytes + at + i] : 0;
  }
}

// The activations of a unit, of which with `half` only the first 16 bytes of a row are there.
template <Format F>
struct Activations {
  __m256i x[F == kTernary ? 4 : F == kInt4 ? 2 : 1];

  void load(const int8_t* row, size_t at, bool half) {
    if constexpr (F == kInt4) {
      x[0] = load256(row + place(at)), x[1] = load256(row + place(at) + kHalf);
    } else if constexpr (F == kTernary) {
#pragma GCC unroll 4
      for (size_t f = 0; f < 4; ++f) x[f] = load256(row + 4 * at + f * kPlane);
    } else {
      x[0] = half ? _mm256_zextsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(row + at)))
                  : load256(row + at);
    }
  }

  // By a unit of one row, four to eight sums.
  __m256i by(__m256i codes) const {
    const __m256i zero = _mm256_setzero_si256(), mask = _mm256_set1_epi8(15);
    if constexpr (F == kInt8Blocks) return dot_int8(zero, codes, x[0]);
    if constexpr (F == kTernary) return dot_block(zero, codes, x[0], x[1], x[2], x[3]);
    const __m256i low = add_products(zero, _mm256_and_si256(codes, mask), x[0]);
    return widened(add_products(low, _mm256_and_si256(_mm256_srli_epi16(codes, 4), mask), x[sizeof x / 32 - 1]));
  }
};

// A unit of four rows.
template <Format F>
inline __m256i multiply_unit(const uint8_t* w, size_t row_bytes, const Activations<F>& x) {
  __m256i sum[4];
#pragma GCC unroll 4
  for (size_t r = 0; r < 4; ++r, w += row_bytes) sum[r] = x.by(load256(w));
  return sum_halves<F>(sum);
}

// Eight rows that are read where they are, by one token. Blocks of half a unit or more.
template <Format F>
void row_in_place(const BlockProduct& p, size_t first, size_t token, float* y) {
  const uint8_t* w = p.w + first * p.row_bytes;
  const char* ahead = reinterpret_cast<const char*>(w + kLanes * p.row_bytes) + kPrefetch;
  const float* steps = p.steps + token * p.blocks;
  const int32_t* corrections = p.corrections + token * p.blocks;
  __m256 total = _mm256_setzero_ps(), scales[4];
  __m256i block = _mm256_setzero_si256();
  for (size_t at = 0, b = 0, loaded = 0; at < p.row_bytes; at += kUnit, ahead += kLanes * kUnit) {
    if (b == loaded) {
      transpose_scales(p, first, b, p.blocks - b, scales);
      loaded += 4;
    }
#pragma GCC unroll 4
    for (size_t i = 0; i < kLanes * kUnit; i += 64) _mm_prefetch(ahead + i, _MM_HINT_T0);
    const bool half = F != kTernary && p.row_bytes - at < kUnit;
    Activations<F> x;
    x.load(p.x + token * p.stride, at, half);
    alignas(32) uint8_t ends[kLanes * kUnit];
    if (half) copy_ends(p, first, at, p.row_bytes - at, ends);
    const uint8_t* unit = half ? ends : w + at;
    const size_t apart = half ? kUnit : p.row_bytes;
    const __m256i q0 = multiply_unit<F>(unit, apart, x), q1 = multiply_unit<F>(unit + 4 * apart, apart, x);
    const __m256i low = _mm256_permute2x128_si256(q0, q1, 0x20), high = _mm256_permute2x128_si256(q0, q1, 0x31);
    if (F != kTernary && p.block == kUnitCodes<F> / 2) {
      const __m256i one = _mm256_add_epi32(low, _mm256_set1_epi32(corrections[b]));
      total = _mm256_add_ps(total, scaled(one, steps[b], scales[b % 4]));
      if (half) break;
      const __m256i other = _mm256_add_epi32(high, _mm256_set1_epi32(corrections[b + 1]));
      total = _mm256_add_ps(total, scaled(other, steps[b + 1], scales[b % 4 + 1]));
      b += 2;
      continue;
    }
    block = _mm256_add_epi32(block, _mm256_add_epi32(low, high));
    if (((at / kUnit + 1) * kUnitCodes<F> & (p.block - 1)) != 0) continue;
    block = _mm256_add_epi32(block, _mm256_set1_epi32(corrections[b]));
    total = _mm256_add_ps(total, scaled(block, steps[b], scales[b % 4]));
    block = _mm256_setzero_si256();
    ++b;
  }
  _mm256_storeu_ps(y, total);
}

// What tokens use of 16 rows, or of eight twice, a part of K after the other: words of four codes in the order of their
// activations (kInt4: of low codes and of high ones in turn), those of all rows together.
struct BlockPanel {
  alignas(32) uint8_t bytes[kPanelCodes * kRows];
  alignas(32) float scales[kPanelCodes / 16 * kRows];

  __attribute__((noinline)) void fill(const BlockProduct& p, size_t first, size_t rows, size_t b, size_t blocks) {
    const size_t begin = code_bytes(p.format, b * p.block), count = code_bytes(p.format, blocks * p.block);
    const size_t codes = kPanelCodes / code_bytes(p.format, kPanelCodes);  // of a byte
    for (size_t half = 0; half < 2; ++half) {
      const size_t row = first + (rows > kLanes ? half * kLanes : 0);
      for (size_t i = 0; i < count; i += kUnit) {
        alignas(32) uint8_t ends[kLanes * kUnit];
        const uint8_t* at[kLanes];
        const bool whole = count - i >= kUnit;
        if (!whole) copy_ends(p, row, begin + i, count - i, ends);
        for (size_t r = 0; r < kLanes; ++r)
          at[r] = whole ? p.w + (row + r) * p.row_bytes + begin + i : ends + r * kUnit;
        pack_words(p.format, at, 0, bytes + i * codes * kRows + half * kUnit);
      }
      for (size_t c = 0; c < blocks; c += 4) {
        __m256 four[4];
        transpose_scales(p, row, b + c, blocks - c, four);
#pragma GCC unroll 4
        for (size_t j = 0; j < 4; ++j) _mm256_store_ps(scales + (c + j) * kRows + half * kLanes, four[j]);
      }
    }
  }
};

// Where the activations of a group of four codes lie, and those of the next four.
struct Places {
  size_t next, pair;  // from a group to the next one, and to the one after it
};

// Groups of four codes of 16 rows by T tokens, two after each other, added to sums. With few 32-bit sums, those of
// every other group are apart: each waits for the one before it.
template <Format F, size_t T, size_t Apart>
inline const uint8_t* add_groups(const uint8_t* w, const int8_t* q, size_t stride, Places places, size_t pairs,
                                 __m256i (*sum)[T][2]) {
  for (size_t g = 0; g < pairs; ++g, q += places.pair) {
#pragma GCC unroll 2
    for (size_t other = 0; other < 2; ++other, w += 4 * kRows) {
      const __m256i w0 = load256(w), w1 = load256(w + kUnit);
#pragma GCC unroll 6
      for (size_t t = 0; t < T; ++t) {
        int32_t four;
        __builtin_memcpy(&four, q + t * stride + other * places.next, sizeof four);
        __m256i* own = sum[other % Apart][t];
        own[0] = add_some<F>(own[0], w0, _mm256_set1_epi32(four));
        own[1] = add_some<F>(own[1], w1, _mm256_set1_epi32(four));
      }
    }
  }
  return w;
}

// T tokens by a panel's 16 rows and its blocks, which begin with block `b`, added to y. F is kInt8Blocks
// where that needs other instructions than the rest, and else kInt4.
template <Format F, size_t T>
void multiply_panel(const BlockPanel& panel, const BlockProduct& p, size_t b, size_t blocks, size_t from, float* y) {
  constexpr size_t kApart = kWideSums<F> && T <= 2 ? 2 : 1;
  const uint8_t* w = panel.bytes;
  const size_t whole = p.block < kInt4Span ? p.block : kInt4Span,
               run = kWideSums<F> || whole < 4 * kChain ? whole : 4 * kChain;
  const Places places = p.format == kInt4 ? Places{kHalf, 4} : Places{4, 8};
  for (size_t i = 0; i < blocks; ++i) {
    const size_t at = from * p.blocks + b + i;
    __m256i dot[kApart][T][2];
#pragma GCC unroll 6
    for (size_t t = 0; t < T; ++t) {
      dot[0][t][0] = dot[0][t][1] = _mm256_set1_epi32(p.corrections[at + t * p.blocks]);
      if constexpr (kApart == 2) dot[1][t][0] = dot[1][t][1] = _mm256_setzero_si256();
    }
    for (size_t k = (b + i) * p.block; k < (b + i + 1) * p.block; k += run) {
      const int8_t* q = p.x + from * p.stride + (p.format == kInt4 ? place(k / 2) : k);
      if constexpr (kWideSums<F>) {
        w = add_groups<F, T, kApart>(w, q, p.stride, places, run / 8, dot);
      } else {
        __m256i narrow[1][T][2] = {};
        w = add_groups<F, T, 1>(w, q, p.stride, places, run / 8, narrow);
#pragma GCC unroll 6
        for (size_t t = 0; t < T; ++t) {
          dot[0][t][0] = _mm256_add_epi32(dot[0][t][0], widened(narrow[0][t][0]));
          dot[0][t][1] = _mm256_add_epi32(dot[0][t][1], widened(narrow[0][t][1]));
        }
      }
    }
#pragma GCC unroll 6
    for (size_t t = 0; t < T; ++t) {
#pragma GCC unroll 2
      for (size_t h = 0; h < 2; ++h) {
        __m256i sum = dot[0][t][h];
        if constexpr (kApart == 2) sum = _mm256_add_epi32(sum, dot[1][t][h]);
        const __m256 scales = _mm256_load_ps(panel.scales + i * kRows + h * kLanes);
        float* own = y + t * kPartRows + h * kLanes;
        const __m256 before = b + i ? _mm256_loadu_ps(own) : _mm256_setzero_ps();
        _mm256_storeu_ps(own, _mm256_add_ps(before, scaled(sum, p.steps[at + t * p.blocks], scales)));
      }
    }
  }
}

// A panel by all tokens, added to y.
template <Format F>
void multiply_tokens(const BlockPanel& panel, const BlockProduct& p, size_t b, size_t blocks, size_t from,
                     size_t tokens, float* y) {
  size_t t = 0;
  if constexpr (kWide) {
    for (; tokens - t >= 6; t += 6) multiply_panel<F, 6>(panel, p, b, blocks, from + t, y + t * kPartRows);
    for (; tokens - t >= 4; t += 4) multiply_panel<F, 4>(panel, p, b, blocks, from + t, y + t * kPartRows);
  }
  for (; tokens - t >= 2; t += 2) multiply_panel<F, 2>(panel, p, b, blocks, from + t, y + t * kPartRows);
  if (t < tokens) multiply_panel<F, 1>(panel, p, b, blocks, from + t, y + t * kPartRows);
}

void multiply_rows(const BlockProduct& p, size_t first, size_t rows, size_t from, size_t tokens, float* y) {
  BlockPanel panel;
  const char* ahead = reinterpret_cast<const char*>(p.w + (first + rows) * p.row_bytes);
  for (size_t b = 0; b < p.blocks; b += kPanelCodes / p.block) {
    const size_t left = p.blocks - b, blocks = left < kPanelCodes / p.block ? left : kPanelCodes / p.block;
    panel.fill(p, first, rows, b, blocks);
    // Asks for the rows that follow, one line of memory after the other.
    for (size_t i = 0; i < rows * code_bytes(p.format, blocks * p.block); i += 64, ahead += 64) {
      _mm_prefetch(ahead, _MM_HINT_T1);
    }
    if (!kWide && p.format == kInt8Blocks) {
      multiply_tokens<kWide ? kInt4 : kInt8Blocks>(panel, p, b, blocks, from, tokens, y);
    } else {
      multiply_tokens<kInt4>(panel, p, b, blocks, from, tokens, y);
    }
  }
}

template <Format F>
void few_tokens(const BlockProduct& p, size_t first, size_t rows, size_t from, size_t tokens, float* y) {
  for (size_t r = 0; r < rows; r += kLanes) {
    for (size_t t = 0; t < tokens; ++t) row_in_place<F>(p, first + r, from + t, y + t * kPartRows + r);
  }
}

void multiply_blocks(const BlockProduct& p, size_t first, size_t rows, size_t from, size_t tokens, float* y) {
  if (tokens <= kInPlace && code_bytes(p.format, p.block) >= kUnit / 2) {
    const auto multiply = p.format == kTernary ? few_tokens<kTernary>
                          : p.format == kInt4  ? few_tokens<kInt4>
                                               : few_tokens<kInt8Blocks>;
    return multiply(p, first, rows, from, tokens, y);
  }
  for (size_t r = 0; r < rows; r += kRows) {
    multiply_rows(p, first + r, rows - r < kRows ? rows - r : kRows, from, tokens, y + r);
  }
}

}  // namespace
}  // namespace edgekit
