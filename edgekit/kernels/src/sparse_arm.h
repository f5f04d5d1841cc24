// Sparse rows by table lookups. Included between the EK_TARGET lines of a file that has included arm.h and has
// dot_int8 (16 signed weights by s8, added to four int32 lanes).
namespace edgekit {
namespace {

// The codes of 16 stored weights of the first or the second half of a block as signed bytes, more of them where there
// are not so many.
inline uint8x16_t signed_codes(Format format, size_t half, const uint8_t* codes) {
  const uint8x16_t bytes = vld1q_u8(codes);
  if (format == kSparse8) return signed_int8(bytes);
  return vsubq_u8(half ? vshrq_n_u8(bytes, 4) : vandq_u8(bytes, vdupq_n_u8(15)), vdupq_n_u8(8));
}

// How many weights are stored by the end of each byte of a mask of 64: bits of each byte, added up by a multiplication.
inline uint64_t ends_of(const uint8_t* mask) {
  return vget_lane_u64(vreinterpret_u64_u8(vcnt_u8(vld1_u8(mask))), 0) * 0x0101010101010101u;
}

// 64 weights as signed bytes in four vectors. Stored codes go to memory first, from where each byte of the mask takes
// the eight that begin where those of the byte before ended.
inline void place(const uint8_t* mask, uint64_t ends, const uint8_t* codes, uint8x16_t* out) {
  uint8x8_t eight[8];
#pragma GCC unroll 8
  for (size_t i = 0; i < 8; ++i) {
    const size_t at = i == 0 ? 0 : static_cast<size_t>(ends >> (8 * i - 8) & 0xFF);
    eight[i] = vtbl1_u8(vld1_u8(codes + at), vld1_u8(kPlaces.of + 8 * size_t{mask[i]}));
  }
#pragma GCC unroll 4
  for (size_t i = 0; i < 4; ++i) out[i] = vcombine_u8(eight[2 * i], eight[2 * i + 1]);
}

// The next 128 weights as signed bytes in eight vectors.
inline bool take_block(Format format, SparseRow* row, uint8x16_t* out) {
  const uint8_t *mask = row->mask, *groups[2];
  const uint64_t ends[2] = {ends_of(mask), ends_of(mask + 8)};
  const size_t stored[2] = {static_cast<size_t>(ends[0] >> 56), static_cast<size_t>(ends[1] >> 56)};
  if (!row->take(format, stored, groups)) return false;
  for (size_t half = 0; half < 2; ++half) {
    uint8_t codes[kGroup + 8];
    for (size_t i = 0; i == 0 || i < stored[half]; i += 16) {
      vst1q_u8(codes + i, signed_codes(format, half, groups[half] + i));
    }
    place(mask + 8 * half, ends[half], codes, out + 4 * half);
  }
  return true;
}

inline int32_t sum_lanes(int32x4_t lanes) {
  const int32x2_t two = vadd_s32(vget_low_s32(lanes), vget_high_s32(lanes));
  return vget_lane_s32(vpadd_s32(two, two), 0);
}

bool sparse(Format format, SparseRow* given, const int8_t* x, size_t blocks, bool each, int32_t* sums) {
  SparseRow row = *given;  // which stays in registers
  int32x4_t sum = vdupq_n_s32(0);
  for (size_t b = 0; b < blocks; ++b) {
    if (each) sum = vdupq_n_s32(0);
    uint8x16_t w[8];
    if (!take_block(format, &row, w)) return false;
#pragma GCC unroll 8
    for (size_t i = 0; i < 8; ++i) sum = dot_int8(sum, as_signed(w[i]), vld1q_s8(x + b * kBlock + 16 * i));
    if (each) sums[b * kGemvRows] = sum_lanes(sum);
  }
  *given = row;
  if (!each) sums[0] = sum_lanes(sum);
  return true;
}

bool expand(Format format, SparseRow* row, size_t blocks, uint8_t* codes) {
  for (size_t b = 0; b < blocks; ++b, codes += kBlock) {
    uint8x16_t w[8];
    if (!take_block(format, row, w)) return false;
#pragma GCC unroll 8
    for (size_t i = 0; i < 8; ++i) vst1q_u8(codes + 16 * i, signed_int8(w[i]));  // which flips the sign bit
  }
  return true;
}

}  // namespace
}  // namespace edgekit
