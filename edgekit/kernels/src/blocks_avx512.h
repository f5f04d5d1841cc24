// Weights whose blocks have a scale each, on AVX512-VNNI: few tokens by rows that are read in place, more by panels
// whose rows lie in lanes. Included between the EK_TARGET lines of its file, after avx512.h.
#include "block_quantize.h"

namespace edgekit {
namespace {

constexpr size_t kLanes = 16;        // rows in a register of sums
constexpr size_t kPiece = 64;        // bytes of a row
constexpr size_t kPanelCodes = 512;  // of K in a panel of 16 KiB
constexpr size_t kInPlace = 2;       // tokens up to which rows are read in place (measured: docs/kernels.md)

// Where sums of 16 rows and one token go.
struct Result {
  const int32_t* corrections;
  const float* steps;
  __m512 y;

  void add(size_t block, __m512i sum, __m512 scales) {
    const __m512 exact = _mm512_cvtepi32_ps(_mm512_add_epi32(sum, _mm512_set1_epi32(corrections[block])));
    y = _mm512_add_ps(y, _mm512_mul_ps(exact, _mm512_mul_ps(_mm512_set1_ps(steps[block]), scales)));
  }
};

// Codes of a piece.
template <Format F>
constexpr size_t kPieceCodes = kPiece * 8 /
                               (F == kTernary ? 2
                                : F == kInt4  ? 4
                                              : 8);

// Four vectors of 16 lanes -> in each quarter four sums of its four lanes. Of less than 8 bits a lane is a sum of eight
// or 16 products, and two lanes still fit 16 bits.
static_assert(16 * 15 * 127 <= 32767 && 32 * 3 * 127 <= 32767, "sum_quarters()");
template <Format F>
inline __m512i sum_quarters(const __m512i* s) {
  if constexpr (F == kInt8Blocks) return sum_lanes(s[0], s[1], s[2], s[3]);
  const __m512i ones = _mm512_set1_epi16(1);
  const __m512i a = _mm512_madd_epi16(_mm512_packs_epi32(s[0], s[1]), ones);
  const __m512i b = _mm512_madd_epi16(_mm512_packs_epi32(s[2], s[3]), ones);
  return _mm512_madd_epi16(_mm512_packs_epi32(a, b), ones);
}

// The activations of a piece of one token, in the order in which multiply_codes() takes them.
template <Format F>
struct Activations {
  __m512i x[F == kTernary ? 4 : F == kInt4 ? 2 : 1];

  // From byte `at` of a row on, of which so many are left.
  void load(const int8_t* row, size_t at, size_t left) {
    if constexpr (F == kTernary) {
#pragma GCC unroll 4
      for (size_t f = 0; f < 4; ++f) {
        x[f] = left < kPiece ? plane<true>(row + 4 * at, f) : plane<false>(row + 4 * at, f);
      }
    } else {
#pragma GCC unroll 2
      for (size_t i = 0; i < sizeof x / sizeof *x; ++i) {
        x[i] = load512(row + sizeof x / sizeof *x * at + i * kPiece);
      }
    }
  }
};

// A piece of one row by that of T tokens.
template <Format F, size_t T>
inline void multiply_codes(__m512i codes, const Activations<F>* token, __m512i (*sum)[4], size_t r) {
  constexpr unsigned kBits = F == kTernary ? 2 : 4;
  const __m512i mask = _mm512_set1_epi8((1 << kBits) - 1);
#pragma GCC unroll 4
  for (unsigned f = 0; f < sizeof token->x / sizeof *token->x; ++f) {
    const __m512i some =
        F == kInt8Blocks ? codes : _mm512_and_si512(f == 0 ? codes : _mm512_srli_epi16(codes, f * kBits), mask);
#pragma GCC unroll 2
    for (size_t t = 0; t < T; ++t) {
      sum[t][r] = _mm512_dpbusd_epi32(f == 0 ? _mm512_setzero_si512() : sum[t][r], some, token[t].x[f]);
    }
  }
}

// A piece of 16 rows, of which `bytes` are there, by T tokens: four rows in each of four vectors, and a quarter of a
// vector for a quarter of the piece.
template <Format F, size_t T>
inline void multiply_piece(const uint8_t* w, size_t row_bytes, __mmask64 bytes, const char* ahead,
                           const Activations<F>* x, __m512i (*quarters)[4]) {
#pragma GCC unroll 1
  for (size_t q = 0; q < 4; ++q, w += 4 * row_bytes) {
    __m512i sum[T][4];
#pragma GCC unroll 4
    for (size_t r = 0; r < 4; ++r) {
      _mm_prefetch(ahead + (4 * q + r) * 64, _MM_HINT_T1);
      multiply_codes<F, T>(_mm512_maskz_loadu_epi8(bytes, w + r * row_bytes), x, sum, r);
    }
#pragma GCC unroll 2
    for (size_t t = 0; t < T; ++t) quarters[t][q] = sum_quarters<F>(sum[t]);
  }
}

// The quarters of a piece, of 16 rows each.
inline void order_quarters(const __m512i* q, __m512i* sums) {
  const __m512i a = _mm512_shuffle_i32x4(q[0], q[1], 0x44), b = _mm512_shuffle_i32x4(q[2], q[3], 0x44);
  const __m512i c = _mm512_shuffle_i32x4(q[0], q[1], 0xEE), d = _mm512_shuffle_i32x4(q[2], q[3], 0xEE);
  sums[0] = _mm512_shuffle_i32x4(a, b, 0x88);
  sums[1] = _mm512_shuffle_i32x4(a, b, 0xDD);
  sums[2] = _mm512_shuffle_i32x4(c, d, 0x88);
  sums[3] = _mm512_shuffle_i32x4(c, d, 0xDD);
}

// The halves of a piece.
inline void order_halves(const __m512i* q, __m512i* sums) {
  const __m512i a = _mm512_add_epi32(_mm512_shuffle_i32x4(q[0], q[1], 0x88), _mm512_shuffle_i32x4(q[0], q[1], 0xDD));
  const __m512i b = _mm512_add_epi32(_mm512_shuffle_i32x4(q[2], q[3], 0x88), _mm512_shuffle_i32x4(q[2], q[3], 0xDD));
  sums[0] = _mm512_shuffle_i32x4(a, b, 0x88);
  sums[1] = _mm512_shuffle_i32x4(a, b, 0xDD);
}

inline __mmask8 of_four(size_t left) { return static_cast<__mmask8>(left >= 4 ? 15 : (1u << left) - 1); }

// Up to four scales of each of four rows, four rows apart, side by side.
inline __m512 load_scales(const float* row, size_t stride, __mmask8 some) {
  __m512 z = _mm512_zextps128_ps512(_mm_maskz_loadu_ps(some, row));
  z = _mm512_insertf32x4(z, _mm_maskz_loadu_ps(some, row + 4 * stride), 1);
  z = _mm512_insertf32x4(z, _mm_maskz_loadu_ps(some, row + 8 * stride), 2);
  return _mm512_insertf32x4(z, _mm_maskz_loadu_ps(some, row + 12 * stride), 3);
}
inline __m512 load_scales(const uint16_t* row, size_t stride, __mmask8 some) {
  const auto two = [&](const uint16_t* at) {
    return _mm_unpacklo_epi64(_mm_maskz_loadu_epi16(some, at), _mm_maskz_loadu_epi16(some, at + 4 * stride));
  };
  return _mm512_cvtph_ps(_mm256_set_m128i(two(row + 8 * stride), two(row)));
}

// Scales of 16 rows and of four blocks from `block` on, or of as many as there are -> a vector for each block.
__attribute__((noinline)) void transpose_scales(const BlockProduct& p, size_t first, size_t block, size_t blocks,
                                                __m512* out) {
  const size_t at = first * p.blocks + block;
  __m512 z[4];
#pragma GCC unroll 4
  for (size_t i = 0; i < 4; ++i) {
    z[i] = p.scales != nullptr ? load_scales(p.scales + at + i * p.blocks, p.blocks, of_four(blocks))
                               : load_scales(p.half_scales + at + i * p.blocks, p.blocks, of_four(blocks));
  }
  const __m512 a = _mm512_unpacklo_ps(z[0], z[1]), b = _mm512_unpackhi_ps(z[0], z[1]);
  const __m512 c = _mm512_unpacklo_ps(z[2], z[3]), d = _mm512_unpackhi_ps(z[2], z[3]);
  out[0] = _mm512_shuffle_ps(a, c, 0x44);
  out[1] = _mm512_shuffle_ps(a, c, 0xEE);
  out[2] = _mm512_shuffle_ps(b, d, 0x44);
  out[3] = _mm512_shuffle_ps(b, d, 0xEE);
}

// 16 rows that are read where they are. Blocks of a quarter of a piece or more.
template <Format F, size_t T>
void rows_in_place(const BlockProduct& p, size_t first, size_t from, float* y) {
  const uint8_t* w = p.w + first * p.row_bytes;
  const char* ahead = reinterpret_cast<const char*>(w + kLanes * p.row_bytes) + kFar;
  Result results[T];
#pragma GCC unroll 2
  for (size_t t = 0; t < T; ++t) {
    const size_t at = (from + t) * p.blocks;
    results[t] = {p.corrections + at, p.steps + at, _mm512_setzero_ps()};
  }
  __m512 scales[4];
  __m512i begun[T] = {};                             // of a block of several pieces
  const size_t in_piece = kPieceCodes<F> / p.block;  // blocks, 0 where they are larger
  for (size_t at = 0, b = 0, loaded = 0; at < p.row_bytes; at += kPiece, ahead += kLanes * 64) {
    if (b == loaded) {
      transpose_scales(p, first, b, p.blocks - b, scales);
      loaded += 4;
    }
    const size_t left = p.row_bytes - at;
    Activations<F> x[T];
    __m512i quarters[T][4];
#pragma GCC unroll 2
    for (size_t t = 0; t < T; ++t) x[t].load(p.x + (from + t) * p.stride, at, left);
    multiply_piece<F, T>(w + at, p.row_bytes, left >= kPiece ? ~__mmask64{0} : (__mmask64{1} << left) - 1, ahead, x,
                         quarters);
    const size_t ended = in_piece ? in_piece : (at / kPiece + 1) * kPieceCodes<F> % p.block == 0;
    const size_t some = ended < p.blocks - b ? ended : p.blocks - b;
#pragma GCC unroll 2
    for (size_t t = 0; t < T; ++t) {
      __m512i sums[4];
      if (F != kTernary && in_piece == 4) {
        order_quarters(quarters[t], sums);
#pragma GCC unroll 4
        for (size_t i = 0; i < 4; ++i) {
          if (i < some) results[t].add(b + i, sums[i], scales[i]);
        }
        continue;
      }
      order_halves(quarters[t], sums);
      if (F == kTernary || in_piece == 2) {
        results[t].add(b, sums[0], scales[b % 4]);
        if (some == 2) results[t].add(b + 1, sums[1], scales[b % 4 + 1]);
        continue;
      }
      begun[t] = _mm512_add_epi32(begun[t], _mm512_add_epi32(sums[0], sums[1]));
      if (some == 0) continue;
      results[t].add(b, begun[t], scales[b % 4]);
      begun[t] = _mm512_setzero_si512();
    }
    b += some;
  }
#pragma GCC unroll 2
  for (size_t t = 0; t < T; ++t) _mm512_store_ps(y + t * kPartRows, results[t].y);
}

// What tokens use of 32 rows, or of 16 twice, a part of K after the other.
struct BlockPanel {
  alignas(64) uint8_t bytes[kPanelCodes * kPartRows];
  alignas(64) float scales[kPanelCodes / 16 * kPartRows];

  __attribute__((noinline)) void fill(const BlockProduct& p, size_t first, size_t rows, size_t b, size_t blocks) {
    const size_t begin = code_bytes(p.format, b * p.block), count = code_bytes(p.format, blocks * p.block);
    const size_t codes = kPanelCodes / code_bytes(p.format, kPanelCodes);  // of a byte
    for (size_t half = 0; half < 2; ++half) {
      const size_t row = first + (rows > kLanes ? half * kLanes : 0);
      const uint8_t* at[kLanes];
      for (size_t r = 0; r < kLanes; ++r) at[r] = p.w + (row + r) * p.row_bytes + begin;
      for (size_t i = 0; i < count; i += 32) {
        uint8_t* out = bytes + i * codes * kPartRows + half * 64;
        if (count - i < 32) {
          pack_end(p.format, at, i, count - i, out);
        } else {
          pack_words(p.format, at, i, out);
        }
      }
      for (size_t c = 0; c < blocks; c += 4) {
        __m512 four[4];
        transpose_scales(p, row, b + c, blocks - c, four);
#pragma GCC unroll 4
        for (size_t j = 0; j < 4; ++j) _mm512_store_ps(scales + (c + j) * kPartRows + half * kLanes, four[j]);
      }
    }
  }

 private:
  // Fewer than 32 bytes of each row.
  static void pack_end(Format format, const uint8_t* const* at, size_t offset, size_t left, uint8_t* out) {
    uint8_t ends[kLanes][32] = {};
    const uint8_t* own[kLanes];
    for (size_t r = 0; r < kLanes; ++r) {
      own[r] = ends[r];
      __builtin_memcpy(ends[r], at[r] + offset, left);
    }
    pack_words(format, own, 0, out);
  }
};

// T tokens by 32 rows and so many blocks from block `b` on, added to y. Where there are few sums, those of low and high
// codes are apart: each waits for the one before it.
template <size_t T>
void multiply_panel(const BlockPanel& panel, const BlockProduct& p, size_t b, size_t blocks, size_t from, float* y) {
  constexpr size_t kApart = T <= 4 ? 2 : 1;
  const int8_t* x = p.x + from * p.stride;
  const uint8_t* w = panel.bytes;
  __m512 sum[T][2];
#pragma GCC unroll 6
  for (size_t t = 0; t < T; ++t) {
    sum[t][0] = b ? _mm512_load_ps(y + t * kPartRows) : _mm512_setzero_ps();
    sum[t][1] = b ? _mm512_load_ps(y + t * kPartRows + kLanes) : _mm512_setzero_ps();
  }
  const size_t run = p.block < kInt4Span ? p.block : kInt4Span;
  // Groups of four codes and the next four: where the activations of both lie.
  const bool apart = p.format == kInt4;
  const size_t next = apart ? kInt4Span / 2 : 4, pair = apart ? 4 : 8;
  for (size_t i = 0; i < blocks; ++i) {
    const size_t at = from * p.blocks + b + i;
    __m512i dot[kApart][T][2];
#pragma GCC unroll 6
    for (size_t t = 0; t < T; ++t) {
      dot[0][t][0] = dot[0][t][1] = _mm512_set1_epi32(p.corrections[at + t * p.blocks]);
      if constexpr (kApart == 2) dot[1][t][0] = dot[1][t][1] = _mm512_setzero_si512();
    }
    const size_t begin = (b + i) * p.block;
    for (size_t k = begin; k < begin + p.block; k += run) {
      const int8_t* q = x + (apart ? (k & ~(kInt4Span - 1)) + (k & (kInt4Span - 1)) / 2 : k);
      for (size_t g = 0; g < run; g += 8, q += pair) {
#pragma GCC unroll 2
        for (size_t high = 0; high < 2; ++high, w += 4 * kPartRows) {
          const __m512i w0 = _mm512_load_si512(w), w1 = _mm512_load_si512(w + 64);
          __m512i(*d)[2] = dot[high % kApart];
#pragma GCC unroll 6
          for (size_t t = 0; t < T; ++t) {
            int32_t four;
            __builtin_memcpy(&four, q + t * p.stride + high * next, sizeof four);
            d[t][0] = _mm512_dpbusd_epi32(d[t][0], w0, _mm512_set1_epi32(four));
            d[t][1] = _mm512_dpbusd_epi32(d[t][1], w1, _mm512_set1_epi32(four));
          }
        }
      }
    }
    const float* scales = panel.scales + i * kPartRows;
#pragma GCC unroll 6
    for (size_t t = 0; t < T; ++t) {
      const __m512 step = _mm512_set1_ps(p.steps[at + t * p.blocks]);
#pragma GCC unroll 2
      for (size_t h = 0; h < 2; ++h) {
        __m512i whole = dot[0][t][h];
        if constexpr (kApart == 2) whole = _mm512_add_epi32(whole, dot[1][t][h]);
        const __m512 factor = _mm512_mul_ps(step, _mm512_load_ps(scales + h * kLanes));
        sum[t][h] = _mm512_add_ps(sum[t][h], _mm512_mul_ps(_mm512_cvtepi32_ps(whole), factor));
      }
    }
  }
#pragma GCC unroll 6
  for (size_t t = 0; t < T; ++t) {
    _mm512_store_ps(y + t * kPartRows, sum[t][0]);
    _mm512_store_ps(y + t * kPartRows + kLanes, sum[t][1]);
  }
}

// How many of so many tokens are multiplied next: few are left over, as few sums keep the multiplier waiting.
inline size_t next_tokens(size_t tokens) {
  if (tokens >= 12 || tokens == 6 || tokens == 9 || tokens == 10) return 6;
  return tokens > 4 ? 4 : tokens;
}

template <Format F>
void few_tokens(const BlockProduct& p, size_t first, size_t rows, size_t from, size_t tokens, float* y) {
  for (size_t r = 0; r < rows; r += kLanes) {
    if (F != kTernary && tokens == 2) {
      rows_in_place<F, 2>(p, first + r, from, y + r);
      continue;
    }
    for (size_t t = 0; t < tokens; ++t) rows_in_place<F, 1>(p, first + r, from + t, y + t * kPartRows + r);
  }
}

void multiply_blocks(const BlockProduct& p, size_t first, size_t rows, size_t from, size_t tokens, float* y) {
  if (tokens <= kInPlace && code_bytes(p.format, p.block) >= kPiece / 4) {
    const auto multiply = p.format == kTernary ? few_tokens<kTernary>
                          : p.format == kInt4  ? few_tokens<kInt4>
                                               : few_tokens<kInt8Blocks>;
    return multiply(p, first, rows, from, tokens, y);
  }
  BlockPanel panel;
  const char* ahead = reinterpret_cast<const char*>(p.w + (first + rows) * p.row_bytes);
  for (size_t b = 0; b < p.blocks; b += kPanelCodes / p.block) {
    const size_t left = p.blocks - b, blocks = left < kPanelCodes / p.block ? left : kPanelCodes / p.block;
    panel.fill(p, first, rows, b, blocks);
    // Asks for the rows that follow, one line of memory after the other.
    for (size_t i = 0; i < rows * code_bytes(p.format, blocks * p.block); i += 64, ahead += 64) {
      _mm_prefetch(ahead, _MM_HINT_T1);
    }
    for (size_t t = 0, some = 0; t < tokens; t += some) {
      some = next_tokens(tokens - t);
      float* own = y + t * kPartRows;
      if (some == 6) multiply_panel<6>(panel, p, b, blocks, from + t, own);
      if (some == 4) multiply_panel<4>(panel, p, b, blocks, from + t, own);
      if (some == 3) multiply_panel<3>(panel, p, b, blocks, from + t, own);
      if (some == 2) multiply_panel<2>(panel, p, b, blocks, from + t, own);
      if (some == 1) multiply_panel<1>(panel, p, b, blocks, from + t, own);
    }
  }
}

}  // namespace
}  // namespace edgekit
