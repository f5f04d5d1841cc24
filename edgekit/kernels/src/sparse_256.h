// Sparse rows on 256 bits, by shuffles. The including file has dot_int8 (a kInt8 weight as stored by s8, added to eight
// int32 lanes).
namespace edgekit {
namespace {

// The codes of 32 stored weights as signed bytes, more of them where there are not so many.
inline __m256i signed_codes(Format format, const uint8_t* codes) {
  if (format == kSparse8) {
    return _mm256_xor_si256(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes)),
                            _mm256_set1_epi8(static_cast<char>(0x80)));
  }
  const __m128i packed = _mm_loadu_si128(reinterpret_cast<const __m128i*>(codes)), nibble = _mm_set1_epi8(15);
  const __m128i even = _mm_and_si128(packed, nibble), odd = _mm_and_si128(_mm_srli_epi16(packed, 4), nibble);
  const __m256i both = _mm256_set_m128i(_mm_unpackhi_epi8(even, odd), _mm_unpacklo_epi8(even, odd));
  return _mm256_sub_epi8(both, _mm256_set1_epi8(8));
}

// The next 64 weights as kInt8 codes in two vectors. Stored codes go to memory first, from where each byte of the mask
// takes the eight that begin where those of the byte before ended.
inline void group(Format format, SparseRow* row, __m256i* out) {
  const size_t stored = static_cast<size_t>(_mm_popcnt_u64(load_mask(row->mask)));
  alignas(32) uint8_t codes[kGroup + 8];
  _mm256_store_si256(reinterpret_cast<__m256i*>(codes), signed_codes(format, row->codes));
  if (stored > 32) {
    const __m256i more = signed_codes(format, row->codes + (format == kSparse8 ? 32 : 16));
    _mm256_store_si256(reinterpret_cast<__m256i*>(codes + 32), more);
  }
  __m128i eight[8];
  const uint8_t* at = codes;
#pragma GCC unroll 8
  for (size_t i = 0; i < 8; ++i) {
    const uint32_t byte = row->mask[i];
    const __m128i places = _mm_loadu_si128(reinterpret_cast<const __m128i*>(kPlaces.of + 8 * byte));
    eight[i] = _mm_shuffle_epi8(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(at)), places);
    at += _mm_popcnt_u32(byte);
  }
#pragma GCC unroll 2
  for (size_t h = 0; h < 2; ++h) {
    const __m128i low = _mm_unpacklo_epi64(eight[4 * h], eight[4 * h + 1]);
    const __m128i high = _mm_unpacklo_epi64(eight[4 * h + 2], eight[4 * h + 3]);
    out[h] = _mm256_xor_si256(_mm256_set_m128i(high, low), _mm256_set1_epi8(static_cast<char>(0x80)));
  }
  row->mask += kGroup / 8;
  row->codes += format == kSparse8 ? stored : (stored + 1) / 2;
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
    for (size_t k = b * kBlock; k < (b + 1) * kBlock; k += kGroup) {
      __m256i w[2];
      group(format, &row, w);
      sum = dot_int8(sum, w[0], load256(x + k));
      sum = dot_int8(sum, w[1], load256(x + k + 32));
      if (row.codes > row.end) return false;
    }
    if (each) sums[b * kGemvRows] = sum_lanes(sum);
  }
  *given = row;
  if (!each) sums[0] = sum_lanes(sum);
  return true;
}

bool expand(Format format, SparseRow* row, size_t blocks, uint8_t* codes) {
  for (size_t i = 0; i < blocks * kBlock; i += kGroup) {
    __m256i w[2];
    group(format, row, w);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(codes + i), w[0]);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(codes + i + 32), w[1]);
    if (row->codes > row->end) return false;
  }
  return true;
}

}  // namespace
}  // namespace edgekit
