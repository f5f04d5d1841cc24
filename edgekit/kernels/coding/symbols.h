// Streams of entropy-coded symbols (docs/pack.md section 5): what decoder and encoder share.
// edgekit/coding/portable.py is the same in numpy.
#pragma once
#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)
#define EK_EXPORT extern "C" __declspec(dllexport)
#else
#define EK_EXPORT extern "C" __attribute__((visibility("default")))
#endif

namespace edgekit {

constexpr uint32_t kScaleBits = 12, kScale = 1u << kScaleBits;
constexpr uint32_t kMostTables = 16, kClasses = 64, kLanes = 16;
constexpr size_t kMostSymbols = 1u << 28;  // so that no number of bytes overflows where size_t has 32 bits
constexpr uint32_t kLow = 1u << 16;        // every state begins and ends here
enum Kind : uint32_t { kAlone, kNeighbours, kBase };

// Distance to the centre on the circle of mask + 1 symbols.
inline uint32_t magnitude(uint8_t symbol, uint8_t centre, uint8_t mask) {
  const uint8_t up = static_cast<uint8_t>(symbol - centre) & mask, down = static_cast<uint8_t>(centre - symbol) & mask;
  return up < down ? up : down;
}

// Symbol number j by distance to the centre: itself, + 1, - 1, + 2, ... A table's symbols and slots follow this order.
inline uint8_t zigzag(uint32_t j, uint8_t centre, uint8_t mask) {
  const uint32_t distance = (j + 1) / 2;
  return static_cast<uint8_t>(j % 2 ? centre + distance : centre - distance) & mask;
}

// The class of a decayed sum of magnitudes: its exponent and two more bits. Activities are below 2^14.
inline uint32_t neighbourhood(uint32_t activity) {
  if (activity < 4) return activity;
  const uint32_t exponent = 31u - static_cast<uint32_t>(__builtin_clz(activity));
  return 4 * (exponent - 1) + (activity >> (exponent - 2) & 3);
}

// The activity after a step of kLanes symbols.
inline uint32_t next_activity(uint32_t activity, const uint8_t* symbols, uint8_t centre, uint8_t mask) {
  uint32_t sum = 0;
  for (uint32_t i = 0; i < kLanes; ++i) sum += magnitude(symbols[i], centre, mask);
  return activity - (activity >> 2) + sum;
}

// The table for the symbol in the place of a base version's symbol.
inline uint32_t base_class(uint8_t base, uint32_t width) { return width == 8 ? base >> 4 : base; }

}  // namespace edgekit

// A stream of `count` symbols (2^28 at most) of `width` bits (2, 4 or 8), one a byte in `symbols`; `base` holds `count`
// symbols of another version, or is null. `workspace` are EdgekitSymbolsWorkspace() numbers. Returns null, or what is
// wrong with the stream; reads and writes nothing outside of what it was given, whatever the stream holds.
EK_EXPORT const char* EdgekitSymbolsDecode(const uint8_t* data, size_t size, uint32_t width, const uint8_t* base,
                                           uint8_t* symbols, size_t count, uint32_t* workspace);
EK_EXPORT size_t EdgekitSymbolsWorkspace();

// Adds to `counts` [kClasses][256] how often each symbol stands in each class of neighbourhood.
EK_EXPORT void EdgekitSymbolsCount(const uint8_t* symbols, size_t count, uint32_t width, uint32_t centre,
                                   int64_t* counts);

// Codes symbols with the model that the other arguments are: frequencies [tables][256], the table of each of the
// kClasses classes, an escape symbol or -1. `base` is needed for kBase. Writes lanes states, at most `count` words from
// the END of `words` and at most `count` escapes; `written` are the numbers of words and escapes.
EK_EXPORT void EdgekitSymbolsEncode(const uint8_t* symbols, size_t count, uint32_t width, const uint8_t* base,
                                    uint32_t lanes, uint32_t kind, uint32_t centre, const uint32_t* frequencies,
                                    const uint8_t* table_of_class, int32_t escape, uint32_t* states, uint16_t* words,
                                    uint8_t* escapes, uint8_t* tables_used, size_t* written);
