// Bytes, numbers and bits off a buffer that nobody vouches for. After the first read past the end, or a number that is
// too large, everything read is zero and ok() is false.
#pragma once
#include "symbols.h"

namespace edgekit {

class Reader {
 public:
  Reader(const uint8_t* data, size_t size) : at_(data), end_(data + size) {}

  bool ok() const { return ok_; }
  size_t left() const { return static_cast<size_t>(end_ - at_); }

  // Null, with ok() false, when fewer bytes are left.
  const uint8_t* take(size_t count) {
    if (count > left()) ok_ = false;
    if (!ok_) return nullptr;
    at_ += count;
    return at_ - count;
  }

  uint8_t byte() {
    const uint8_t* found = take(1);
    return found == nullptr ? 0 : *found;
  }

  // Unsigned LEB128 of at most five bytes.
  size_t number(size_t most) {
    uint64_t value = 0;
    for (uint32_t shift = 0; shift < 35; shift += 7) {
      const uint8_t next = byte();
      value |= static_cast<uint64_t>(next & 127) << shift;
      if (next < 128) return checked(value, most);
    }
    return checked(1, 0);
  }

  // Bits of whole bytes, the highest first; drop_bits() before bytes are read again. At most 16 at a time.
  uint32_t bits(uint32_t count) {
    while (bit_count_ < count) {
      bits_ = bits_ << 8 | byte();
      bit_count_ += 8;
    }
    bit_count_ -= count;
    return bits_ >> bit_count_ & ((1u << count) - 1);
  }
  void drop_bits() { bit_count_ = 0; }

  // Exponential Golomb number of order k.
  uint32_t golomb(uint32_t k, uint32_t most) {
    uint32_t length = k;
    while (ok_ && bits(1) == 0) {
      if (++length > kScaleBits + 1) ok_ = false;
    }
    if (!ok_) return 0;
    return static_cast<uint32_t>(checked((1u << length | bits(length)) - (1u << k), most));
  }

 private:
  size_t checked(uint64_t value, size_t most) {
    if (value > most) ok_ = false;
    return ok_ ? static_cast<size_t>(value) : 0;
  }

  const uint8_t* at_;
  const uint8_t* end_;
  uint32_t bits_ = 0, bit_count_ = 0;
  bool ok_ = true;
};

}  // namespace edgekit
