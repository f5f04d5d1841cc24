// What the 64-bit ARM kernels share. Included between the EK_TARGET lines of a file that has included arm_neon.h.
namespace edgekit {
namespace {

inline uint8x16_t signed_int8(uint8x16_t stored) { return veorq_u8(stored, vdupq_n_u8(0x80)); }

inline int8x16_t as_signed(uint8x16_t v) { return vreinterpretq_s8_u8(v); }

// The four lanes of each of four vectors -> their sums.
inline int32x4_t sum_rows(int32x4_t a, int32x4_t b, int32x4_t c, int32x4_t d) {
  const int32x2_t a2 = vadd_s32(vget_low_s32(a), vget_high_s32(a)), b2 = vadd_s32(vget_low_s32(b), vget_high_s32(b));
  const int32x2_t c2 = vadd_s32(vget_low_s32(c), vget_high_s32(c)), d2 = vadd_s32(vget_low_s32(d), vget_high_s32(d));
  return vcombine_s32(vpadd_s32(a2, b2), vpadd_s32(c2, d2));
}

// Codes `f` of 16 bytes of kTernary.
inline uint8x16_t plane(uint8x16_t words, int f) {
  const uint8x16_t mask = vdupq_n_u8(3);
  switch (f) {
    case 0:
      return vandq_u8(words, mask);
    case 1:
      return vandq_u8(vshrq_n_u8(words, 2), mask);
    case 2:
      return vandq_u8(vshrq_n_u8(words, 4), mask);
    default:
      return vshrq_n_u8(words, 6);
  }
}

// Asks for as much as `bytes` of four rows, one line of memory after the other.
inline const uint8_t* prefetch(const uint8_t* ahead, size_t bytes) {
  for (size_t i = 0; i < 4 * bytes; i += 64) __builtin_prefetch(ahead + i);
  return ahead + 4 * bytes;
}

}  // namespace
}  // namespace edgekit
