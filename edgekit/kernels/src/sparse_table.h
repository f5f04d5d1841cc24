// Where the stored weights of a sparse row go: for each byte of its mask, which of the next eight codes each of eight
// weights takes. 0x80 means none of them, and both pshufb and tbl make a zero of it.
#pragma once
#include "kernels.h"

namespace edgekit {

struct Places {
  uint8_t of[256 * 8 + 8];  // read 16 bytes at a time
};

constexpr Places make_places() {
  Places places{};
  for (int byte = 0; byte < 256; ++byte) {
    uint8_t next = 0;
    for (int bit = 0; bit < 8; ++bit) places.of[8 * byte + bit] = byte >> bit & 1 ? next++ : uint8_t{0x80};
  }
  return places;
}

alignas(64) inline constexpr Places kPlaces = make_places();

inline uint64_t load_mask(const uint8_t* mask) {
  uint64_t word;
  __builtin_memcpy(&word, mask, sizeof word);
  return word;
}

}  // namespace edgekit
