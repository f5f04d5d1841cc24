// Sparse rows by table lookups. Included between the EK_TARGET lines of a file that has included arm.h and has
// dot_int8 (16 signed weights by s8, added to four int32 lanes).
namespace edgekit {
namespace {

// The codes of 32 stored weights as signed bytes, more of them where there are not so many.
inline void signed_codes(Format format, const uint8_t* codes, uint8_t* out) {
  if (format == kSparse8) {
    vst1q_u8(out, signed_int8(vld1q_u8(codes)));
    vst1q_u8(out + 16, signed_int8(vld1q_u8(codes + 16)));
    return;
  }
  const uint8x16_t packed = vld1q_u8(codes), eight = vdupq_n_u8(8);
  uint8x16x2_t both;  // stored one by one in turn
  both.val[0] = vsubq_u8(vandq_u8(packed, vdupq_n_u8(15)), eight);
  both.val[1] = vsubq_u8(vshrq_n_u8(packed, 4), eight);
  vst2q_u8(out, both);
}

// The next 64 weights as signed bytes in four vectors. Stored codes go to memory first, from where each byte of the
// mask takes the eight that begin where those of the byte before ended.
inline void group(Format format, SparseRow* row, uint8x16_t* out) {
  // How many are stored by the end of each byte of the mask: bits of each byte, added up by a multiplication.
  uint8x8_t bits = vcnt_u8(vld1_u8(row->mask));
  const uint64_t ends = vget_lane_u64(vreinterpret_u64_u8(bits), 0) * 0x0101010101010101u;
  const size_t stored = static_cast<size_t>(ends >> 56);
  uint8_t codes[kGroup + 8];
  signed_codes(format, row->codes, codes);
  if (stored > 32) signed_codes(format, row->codes + (format == kSparse8 ? 32 : 16), codes + 32);
  uint8x8_t eight[8];
#pragma GCC unroll 8
  for (size_t i = 0; i < 8; ++i) {
    const size_t at = i == 0 ? 0 : static_cast<size_t>(ends >> (8 * i - 8) & 0xFF);
    eight[i] = vtbl1_u8(vld1_u8(codes + at), vld1_u8(kPlaces.of + 8 * size_t{row->mask[i]}));
  }
#pragma GCC unroll 4
  for (size_t i = 0; i < 4; ++i) out[i] = vcombine_u8(eight[2 * i], eight[2 * i + 1]);
  row->mask += kGroup / 8;
  row->codes += format == kSparse8 ? stored : (stored + 1) / 2;
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
    for (size_t k = b * kBlock; k < (b + 1) * kBlock; k += kGroup) {
      uint8x16_t w[4];
      group(format, &row, w);
#pragma GCC unroll 4
      for (size_t i = 0; i < 4; ++i) sum = dot_int8(sum, as_signed(w[i]), vld1q_s8(x + k + 16 * i));
      if (row.codes > row.end) return false;
    }
    if (each) sums[b * kGemvRows] = sum_lanes(sum);
  }
  *given = row;
  if (!each) sums[0] = sum_lanes(sum);
  return true;
}

bool expand(Format format, SparseRow* row, size_t blocks, uint8_t* codes) {
  for (size_t k = 0; k < blocks * kBlock; k += kGroup) {
    uint8x16_t w[4];
    group(format, row, w);
#pragma GCC unroll 4
    for (size_t i = 0; i < 4; ++i) vst1q_u8(codes + k + 16 * i, signed_int8(w[i]));  // which flips the sign bit
    if (row->codes > row->end) return false;
  }
  return true;
}

}  // namespace
}  // namespace edgekit
