// Limits of the machine, measured beside the kernels: reading memory once, and multiplying bytes in registers.
#include <stddef.h>
#include <stdint.h>
#if defined(__AVX512VNNI__)
#include <immintrin.h>
#endif

// Reads `size` bytes, a multiple of 512, `times` times; returns something that depends on all of them.
uint64_t read_repeatedly(const uint64_t* data, size_t size, size_t times) {
  uint64_t sums[64] = {0};
  for (size_t t = 0; t < times; ++t) {
    for (size_t i = 0; i < size / 8; i += 64) {
      for (int j = 0; j < 64; ++j) sums[j] += data[i + j];
    }
    __asm__ volatile("" : : : "memory");  // or the compiler reads once and multiplies
  }
  uint64_t total = 0;
  for (int j = 0; j < 64; ++j) total += sums[j];
  return total;
}

// Multiplies and adds `rounds` times 12 x 64 pairs of bytes without touching memory; 0 where vpdpbusd is not there.
int multiply_in_registers(size_t rounds) {
#if defined(__AVX512VNNI__)
  __m512i sums[12], a = _mm512_set1_epi8(3), b = _mm512_set1_epi8(5);
  for (int i = 0; i < 12; ++i) sums[i] = _mm512_set1_epi32(i);
  for (size_t r = 0; r < rounds; ++r) {
    for (int i = 0; i < 12; ++i) sums[i] = _mm512_dpbusd_epi32(sums[i], a, b);
    __asm__ volatile("" : "+v"(a), "+v"(b));
  }
  for (int i = 1; i < 12; ++i) sums[0] = _mm512_add_epi32(sums[0], sums[i]);
  return _mm512_reduce_add_epi32(sums[0]) | 1;
#else
  (void)rounds;
  return 0;
#endif
}
