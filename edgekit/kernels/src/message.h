// Text for errors, without a C library.
#pragma once
#include <stddef.h>
#include <stdint.h>

namespace edgekit {

class Message {
 public:
  // Out of line: errors are rare, and the library is small.
  __attribute__((noinline)) Message& operator<<(const char* text) {
    while (*text && size_ + 1 < sizeof text_) text_[size_++] = *text++;
    text_[size_] = 0;
    return *this;
  }
  __attribute__((noinline)) Message& operator<<(int64_t number) {
    char digits[24];
    size_t first = sizeof digits - 1;
    digits[first] = 0;
    uint64_t rest = number < 0 ? 0 - static_cast<uint64_t>(number) : static_cast<uint64_t>(number);
    do {
      // By hand: 64-bit division is a library call on 32-bit ARM.
      uint64_t quotient = 0, remainder = 0;
      for (int bit = 63; bit >= 0; --bit) {
        remainder = remainder << 1 | (rest >> bit & 1);
        quotient <<= 1;
        if (remainder >= 10) remainder -= 10, quotient |= 1;
      }
      digits[--first] = static_cast<char>('0' + remainder);
      rest = quotient;
    } while (rest);
    if (number < 0) digits[--first] = '-';
    return *this << digits + first;
  }
  const char* text() const { return text_; }

 private:
  char text_[400] = {};
  size_t size_ = 0;
};

}  // namespace edgekit
