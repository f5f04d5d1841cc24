// The 256-bit kernels. AVX2 and AVX-VNNI differ in how products are added up and in nothing else: the including file
// defines kInt8Zero, dot_codes (u8 codes 0..3 by s8) and dot_int8 (a kInt8 weight as stored by s8), each adding to
// eight int32 lanes, and dot_block (32 ternary bytes by four planes).
namespace edgekit {
namespace {

constexpr size_t kRows = 16;

// Four rows of eight lanes -> their four sums.
inline __m128i sum_rows(__m256i s0, __m256i s1, __m256i s2, __m256i s3) {
  __m256i both = _mm256_hadd_epi32(_mm256_hadd_epi32(s0, s1), _mm256_hadd_epi32(s2, s3));
  return _mm_add_epi32(_mm256_castsi256_si128(both), _mm256_extracti128_si256(both, 1));
}

// Asks for as much as 32 bytes of four rows, one line of memory after the other (docs/kernels.md).
inline const char* prefetch(const char* ahead) {
  _mm_prefetch(ahead, _MM_HINT_T0);
  _mm_prefetch(ahead + 64, _MM_HINT_T0);
  return ahead + 128;
}

inline __m128i four_rows(Format format, const uint8_t* const* rows, const int8_t* x, size_t blocks, const char* ahead) {
  __m256i sum[4] = {_mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256()};
  if (format == kInt8) {
    for (size_t k = 0; k < blocks * kBlock; k += 32) {
      const __m256i q = load256(x + k);
#pragma GCC unroll 4
      for (size_t i = 0; i < 4; ++i) {
        sum[i] = dot_int8(sum[i], load256(rows[i] + k), q);
      }
      ahead = prefetch(ahead);
    }
  } else {
    for (size_t b = 0; b < blocks; ++b) {
      const int8_t* q = x + b * kBlock;
      const __m256i x0 = load256(q), x1 = load256(q + 32), x2 = load256(q + 64), x3 = load256(q + 96);
#pragma GCC unroll 4
      for (size_t i = 0; i < 4; ++i) {
        sum[i] = dot_block(sum[i], load256(rows[i] + b * kPlane), x0, x1, x2, x3);
      }
      ahead = prefetch(ahead);
    }
  }
  return sum_rows(sum[0], sum[1], sum[2], sum[3]);
}

void gemv(Format format, const uint8_t* w, size_t row_bytes, size_t rows, const int8_t* x, size_t stride, size_t tokens,
          size_t blocks, bool each, int32_t* sums) {
  const size_t pieces = each ? blocks : 1, span = each ? 1 : blocks;
  for (size_t r = 0; r < rows; r += 4) {
    for (size_t p = 0; p < pieces; ++p) {
      const uint8_t* at[4];
#pragma GCC unroll 4
      for (size_t i = 0; i < 4; ++i)
        at[i] = w + (r + i < rows ? r + i : rows - 1) * row_bytes + p * block_bytes(format);
      const char* ahead =
          reinterpret_cast<const char*>(w + (r + 4) * row_bytes + 4 * p * block_bytes(format)) + kPrefetch;
      for (size_t t = 0; t < tokens; ++t) {
        const __m128i found = four_rows(format, at, x + t * stride + p * kBlock, span, ahead);
        _mm_storeu_si128(reinterpret_cast<__m128i*>(sums + (t * pieces + p) * kGemvRows + r), found);
      }
    }
  }
}

// 8 rows of 32 bytes -> eight vectors, word g of every row in the g-th.
inline void transpose(const uint8_t* const* rows, size_t offset, __m256i* words) {
  __m256i quad[2][4];
#pragma GCC unroll 2
  for (size_t h = 0; h < 2; ++h) {
    __m256i z[4];
#pragma GCC unroll 4
    for (size_t i = 0; i < 4; ++i) z[i] = load256(rows[4 * h + i] + offset);
    const __m256i a = _mm256_unpacklo_epi32(z[0], z[1]), b = _mm256_unpackhi_epi32(z[0], z[1]);
    const __m256i c = _mm256_unpacklo_epi32(z[2], z[3]), d = _mm256_unpackhi_epi32(z[2], z[3]);
    quad[h][0] = _mm256_unpacklo_epi64(a, c);
    quad[h][1] = _mm256_unpackhi_epi64(a, c);
    quad[h][2] = _mm256_unpacklo_epi64(b, d);
    quad[h][3] = _mm256_unpackhi_epi64(b, d);
  }
#pragma GCC unroll 4
  for (size_t i = 0; i < 4; ++i) {
    words[i] = _mm256_permute2x128_si256(quad[0][i], quad[1][i], 0x20);
    words[4 + i] = _mm256_permute2x128_si256(quad[0][i], quad[1][i], 0x31);
  }
}

inline void store(uint8_t* out, __m256i v) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), v); }

// 32 bytes from `offset` on of eight rows, unpacked: the words of a row lie kRows words apart, in the order of their
// activations; those of kInt4 with low codes and those with high ones in turn.
__attribute__((noinline)) void pack_words(Format format, const uint8_t* const* at, size_t offset, uint8_t* panel) {
  constexpr size_t kWords = 4 * kRows;
  __m256i words[8];
  transpose(at, offset, words);
#pragma GCC unroll 8
  for (size_t g = 0; g < 8; ++g) {
    if (format == kTernary) {
      const __m256i mask = _mm256_set1_epi8(3);
      store(panel + g * kWords, _mm256_and_si256(words[g], mask));
      store(panel + (8 + g) * kWords, _mm256_and_si256(_mm256_srli_epi16(words[g], 2), mask));
      store(panel + (16 + g) * kWords, _mm256_and_si256(_mm256_srli_epi16(words[g], 4), mask));
      store(panel + (24 + g) * kWords, _mm256_and_si256(_mm256_srli_epi16(words[g], 6), mask));
    } else if (format == kInt4) {
      const __m256i mask = _mm256_set1_epi8(15);
      store(panel + 2 * g * kWords, _mm256_and_si256(words[g], mask));
      store(panel + (2 * g + 1) * kWords, _mm256_and_si256(_mm256_srli_epi16(words[g], 4), mask));
    } else {
      store(panel + g * kWords, words[g]);
    }
  }
}

void pack(Format format, const uint8_t* w, size_t row_bytes, size_t rows, size_t blocks, uint8_t* panel) {
  const size_t parts = block_bytes(format) / kPlane;  // of 32 bytes
  for (size_t half = 0; half < kRows / 8; ++half) {
    const uint8_t* at[8];
    for (size_t i = 0; i < 8; ++i) at[i] = w + (half * 8 + i < rows ? half * 8 + i : rows - 1) * row_bytes;
    for (size_t p = 0; p < blocks * parts; ++p) {
      pack_words(format, at, p * kPlane, panel + p * (kBlock / parts) * kRows + half * 32);
    }
  }
}

// 4 tokens by 16 rows: 8 of 16 registers are sums.
template <Format F, size_t T>
void tile_tokens(const uint8_t* panel, const int8_t* x, size_t stride, size_t blocks, bool add, int32_t* sums) {
  __m256i sum[T][2];
#pragma GCC unroll 4
  for (size_t t = 0; t < T; ++t) {
    sum[t][0] = add ? load256(sums + t * kRows) : _mm256_setzero_si256();
    sum[t][1] = add ? load256(sums + t * kRows + 8) : _mm256_setzero_si256();
  }
  for (size_t s = 0; s < blocks * kSteps; ++s) {
    const __m256i w0 = load256(panel + s * 4 * kRows), w1 = load256(panel + s * 4 * kRows + 32);
#pragma GCC unroll 4
    for (size_t t = 0; t < T; ++t) {
      int32_t four;
      __builtin_memcpy(&four, x + t * stride + 4 * s, sizeof four);
      const __m256i q = _mm256_set1_epi32(four);
      sum[t][0] = F == kInt8 ? dot_int8(sum[t][0], w0, q) : dot_codes(sum[t][0], w0, q);
      sum[t][1] = F == kInt8 ? dot_int8(sum[t][1], w1, q) : dot_codes(sum[t][1], w1, q);
    }
  }
#pragma GCC unroll 4
  for (size_t t = 0; t < T; ++t) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(sums + t * kRows), sum[t][0]);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(sums + t * kRows + 8), sum[t][1]);
  }
}

template <Format F>
void tile_format(const uint8_t* panel, const int8_t* x, size_t stride, size_t tokens, size_t blocks, bool add,
                 int32_t* sums) {
  for (; tokens >= 4; tokens -= 4, x += 4 * stride, sums += 4 * kRows) {
    tile_tokens<F, 4>(panel, x, stride, blocks, add, sums);
  }
  for (; tokens; --tokens, x += stride, sums += kRows) tile_tokens<F, 1>(panel, x, stride, blocks, add, sums);
}

void tile(Format format, const uint8_t* panel, const int8_t* x, size_t stride, size_t tokens, size_t blocks, bool add,
          int32_t* sums) {
  if (format == kInt8) {
    tile_format<kInt8>(panel, x, stride, tokens, blocks, add, sums);
  } else {
    tile_format<kTernary>(panel, x, stride, tokens, blocks, add, sums);
  }
}

}  // namespace
}  // namespace edgekit
