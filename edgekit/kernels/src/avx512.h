// Loads and the transpose that AVX512's kernels share. Included between the EK_TARGET lines of their file.
namespace edgekit {
namespace {

// So fast a loop is ahead of its own requests to the first cache: these go to the second.
constexpr size_t kFar = 12288;

inline __m256i load256(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
inline __m512i load512(const void* p) { return _mm512_loadu_si512(p); }

// 32 bytes of one row and of the next.
inline __m512i load_pair(const void* a, const void* b) {
  return _mm512_inserti64x4(_mm512_castsi256_si512(load256(a)), load256(b), 1);
}

// Rows 0..3 and 4..7 of eight in two halves of four vectors -> words in the order in which transpose() takes them.
inline void transpose_half(const __m512i* z, __m512i* words) {
  const __m512i a = _mm512_unpacklo_epi32(z[0], z[1]), b = _mm512_unpackhi_epi32(z[0], z[1]);
  const __m512i c = _mm512_unpacklo_epi32(z[2], z[3]), d = _mm512_unpackhi_epi32(z[2], z[3]);
  words[0] = _mm512_unpacklo_epi64(a, c);
  words[1] = _mm512_unpackhi_epi64(a, c);
  words[2] = _mm512_unpacklo_epi64(b, d);
  words[3] = _mm512_unpackhi_epi64(b, d);
}

// 32 bytes of 16 rows, as pair(i, j) loads them of rows i and j -> eight vectors, word g of every row in the g-th.
template <class Pair>
inline void transpose(const Pair& pair, __m512i* words) {
  __m512i half[2][4];
#pragma GCC unroll 2
  for (size_t h = 0; h < 2; ++h) {
    __m512i z[4];
#pragma GCC unroll 4
    for (size_t i = 0; i < 4; ++i) z[i] = pair(8 * h + i, 8 * h + 4 + i);
    transpose_half(z, half[h]);
  }
#pragma GCC unroll 4
  for (size_t i = 0; i < 4; ++i) {
    words[i] = _mm512_shuffle_i32x4(half[0][i], half[1][i], 0x88);
    words[4 + i] = _mm512_shuffle_i32x4(half[0][i], half[1][i], 0xDD);
  }
}

}  // namespace
}  // namespace edgekit
