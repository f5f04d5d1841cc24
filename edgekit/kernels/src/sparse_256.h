// Sparse rows on 256 bits, by shuffles. The including file has dot_int8 (a kInt8 weight as stored by s8, added to eight
// int32 lanes).
namespace edgekit {
namespace {

// The codes of 32 stored weights of the first or the second half of a block as signed bytes, more of them where there
// are not so many.
inline __m256i signed_codes(Format format, size_t half, const uint8_t* codes) {
  const __m256i bytes = load256(codes);
  if (format == kSparse8) return _mm256_xor_si256(bytes, _mm256_set1_epi8(static_cast<char>(0x80)));
  const __m256i low = _mm256_and_si256(half ? _mm256_srli_epi16(bytes, 4) : bytes, _mm256_set1_epi8(15));
  return _mm256_sub_epi8(low, _mm256_set1_epi8(8));
}

// 64 weights as kInt8 codes in two vectors. Stored codes go to memory first, from where each byte of the mask takes the
// eight that begin where those of the byte before ended.
inline void place(const uint8_t* mask, const uint8_t* codes, __m256i* out) {
  __m128i eight[8];
#pragma GCC unroll 8
  for (size_t i = 0; i < 8; ++i) {
    const uint32_t byte = mask[i];
    const __m128i places = _mm_loadu_si128(reinterpret_cast<const __m128i*>(kPlaces.of + 8 * byte));
    eight[i] = _mm_shuffle_epi8(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(codes)), places);
    codes += _mm_popcnt_u32(byte);
  }
#pragma GCC unroll 2
  for (size_t h = 0; h < 2; ++h) {
    const __m128i low = _mm_unpacklo_epi64(eight[4 * h], eight[4 * h + 1]);
    const __m128i high = _mm_unpacklo_epi64(eight[4 * h + 2], eight[4 * h + 3]);
    out[h] = _mm256_xor_si256(_mm256_set_m128i(high, low), _mm256_set1_epi8(static_cast<char>(0x80)));
  }
}

// The next 128 weights as kInt8 codes in four vectors.
__attribute__((always_inline)) inline bool take_block(Format format, SparseRow* row, __m256i* out) {
  const uint8_t *mask = row->mask, *groups[2];
  const size_t stored[2] = {static_cast<size_t>(_mm_popcnt_u64(load_mask(mask))),
                            static_cast<size_t>(_mm_popcnt_u64(load_mask(mask + 8)))};
  if (!row->take(format, stored, groups)) return false;
#pragma GCC unroll 2
  for (size_t half = 0; half < 2; ++half) {
    alignas(32) uint8_t codes[kGroup + 8];
    _mm256_store_si256(reinterpret_cast<__m256i*>(codes), signed_codes(format, half, groups[half]));
    if (stored[half] > 32) {
      _mm256_store_si256(reinterpret_cast<__m256i*>(codes + 32), signed_codes(format, half, groups[half] + 32));
    }
    place(mask + 8 * half, codes, out + 2 * half);
  }
  return true;
}

inline int32_t sum_lanes(__m256i lanes) {
  __m128i sum = _mm_add_epi32(_mm256_castsi256_si128(lanes), _mm256_extracti128_si256(lanes, 1));
  sum = _mm_hadd_epi32(sum, sum);
  return _mm_cvtsi128_si32(_mm_hadd_epi32(sum, sum));
}

bool sparse(Format format, SparseRow* given, const int8_t* x, size_t blocks, bool each, int32_t* sums) {
  SparseRow row = *given;  // which stays in registers
  __m256i sum = _mm256_setzero_si256();
  for (size_t b = 0; b < blocks; ++b) {
    if (each) sum = _mm256_setzero_si256();
    __m256i w[4];
    if (!take_block(format, &row, w)) return false;
#pragma GCC unroll 4
    for (size_t i = 0; i < 4; ++i) sum = dot_int8(sum, w[i], load256(x + b * kBlock + 32 * i));
    if (each) sums[b * kGemvRows] = sum_lanes(sum);
  }
  *given = row;
  if (!each) sums[0] = sum_lanes(sum);
  return true;
}

bool expand(Format format, SparseRow* row, size_t blocks, uint8_t* codes) {
  for (size_t b = 0; b < blocks; ++b, codes += kBlock) {
    __m256i w[4];
    if (!take_block(format, row, w)) return false;
#pragma GCC unroll 4
    for (size_t i = 0; i < 4; ++i) _mm256_storeu_si256(reinterpret_cast<__m256i*>(codes + 32 * i), w[i]);
  }
  return true;
}

}  // namespace
}  // namespace edgekit
