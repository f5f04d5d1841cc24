// AVX2: eight states at a time; the words that they need lie one after the other and are moved to their lanes by a
// table.
#include "steps.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>

namespace edgekit {
namespace {

// For each set of lanes, which of the next words each lane gets.
struct Places {
  uint8_t of[256][8];
};
constexpr Places make_places() {
  Places places{};
  for (unsigned lanes = 0; lanes < 256; ++lanes) {
    for (unsigned lane = 0, word = 0; lane < 8; ++lane) {
      places.of[lanes][lane] = static_cast<uint8_t>(word);
      word += lanes >> lane & 1;
    }
  }
  return places;
}
constexpr Places kPlaces = make_places();

#define EK_AVX2 __attribute__((target("avx2,popcnt")))

EK_AVX2 inline __m256i eight(__m256i x, const uint32_t* table, uint8_t* symbols, const uint8_t** words) {
  const __m256i low_bits = _mm256_set1_epi32(kScale - 1);
  const __m256i slot = _mm256_and_si256(x, low_bits);
  const __m256i entry = _mm256_i32gather_epi32(reinterpret_cast<const int*>(table), slot, 4);
  const __m256i frequency =
      _mm256_add_epi32(_mm256_and_si256(_mm256_srli_epi32(entry, 8), low_bits), _mm256_set1_epi32(1));
  x = _mm256_add_epi32(_mm256_mullo_epi32(frequency, _mm256_srli_epi32(x, kScaleBits)), _mm256_srli_epi32(entry, 20));
  const __m256i bytes = _mm256_shuffle_epi8(entry, _mm256_set1_epi32(0x0C080400));
  const uint32_t first = static_cast<uint32_t>(_mm256_extract_epi32(bytes, 0));
  const uint32_t second = static_cast<uint32_t>(_mm256_extract_epi32(bytes, 4));
  __builtin_memcpy(symbols, &first, 4);
  __builtin_memcpy(symbols + 4, &second, 4);
  const __m256i low = _mm256_cmpeq_epi32(_mm256_srli_epi32(x, 16), _mm256_setzero_si256());
  const unsigned lanes = static_cast<unsigned>(_mm256_movemask_ps(_mm256_castsi256_ps(low)));
  const __m256i next = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(*words)));
  const __m256i places = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(kPlaces.of[lanes])));
  const __m256i refilled = _mm256_or_si256(_mm256_slli_epi32(x, 16), _mm256_permutevar8x32_epi32(next, places));
  *words += 2 * static_cast<unsigned>(__builtin_popcount(lanes));
  return _mm256_blendv_epi8(x, refilled, low);
}

EK_AVX2 size_t steps_avx2(uint32_t* states, const uint32_t* table, uint8_t* symbols, size_t steps,
                          const uint8_t** words, const uint8_t* words_end) {
  __m256i a = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(states));
  __m256i b = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(states + 8));
  const uint8_t* next = *words;
  size_t done = 0;
  for (; done < steps && words_end - next >= 2 * static_cast<ptrdiff_t>(kLanes); ++done, symbols += kLanes) {
    a = eight(a, table, symbols, &next);
    b = eight(b, table, symbols + 8, &next);
  }
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(states), a);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(states + 8), b);
  *words = next;
  return done;
}

bool has_avx2() {
  unsigned a = 0, b = 0, c = 0, d = 0, low, high;
  if (__get_cpuid(1, &a, &b, &c, &d) == 0 || (c >> 27 & 1) == 0 || (c >> 23 & 1) == 0) return false;  // OSXSAVE, POPCNT
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  if ((low & 6) != 6) return false;  // the system saves the registers
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) != 0 && (b >> 5 & 1);
}

}  // namespace

Steps fastest_steps() { return has_avx2() ? steps_avx2 : nullptr; }

}  // namespace edgekit

#else

edgekit::Steps edgekit::fastest_steps() { return nullptr; }

#endif
