// Encoder, and the statistics that its model is made of.
#include "symbols.h"

namespace edgekit {
namespace {

struct Coded {
  uint32_t frequency, start;
};

// x / frequency; 32-bit ARM has no instruction for whole numbers, and doubles hold all of these exactly.
inline uint32_t divide(uint32_t x, uint32_t frequency) {
  return static_cast<uint32_t>(static_cast<double>(x) / static_cast<double>(frequency));
}

}  // namespace
}  // namespace edgekit

void EdgekitSymbolsCount(const uint8_t* symbols, size_t count, uint32_t width, uint32_t centre, int64_t* counts) {
  using namespace edgekit;
  const uint8_t mask = static_cast<uint8_t>((1u << width) - 1);
  uint32_t activity = 0;
  for (size_t at = 0; at < count; at += kLanes) {
    int64_t* row = counts + 256 * neighbourhood(activity);
    const size_t lanes = count - at < kLanes ? count - at : kLanes;
    for (size_t lane = 0; lane < lanes; ++lane) ++row[symbols[at + lane]];
    if (lanes == kLanes) activity = next_activity(activity, symbols + at, static_cast<uint8_t>(centre), mask);
  }
}

void EdgekitSymbolsEncode(const uint8_t* symbols, size_t count, uint32_t width, const uint8_t* base, uint32_t lanes,
                          uint32_t kind, uint32_t centre, const uint32_t* frequencies, const uint8_t* table_of_class,
                          int32_t escape, uint32_t* states, uint16_t* words, uint8_t* escapes, uint8_t* tables_used,
                          size_t* written) {
  using namespace edgekit;
  const uint8_t mask = static_cast<uint8_t>((1u << width) - 1);
  const uint32_t shift = static_cast<uint32_t>(__builtin_ctz(lanes));  // lanes are a power of two
  uint32_t activity = 0;
  size_t escaped = 0;
  // Forward: the table of every step, and the escaped symbols in the decoder's order.
  for (size_t at = 0; at < count; at += lanes) {
    const size_t taken = count - at < lanes ? count - at : lanes;
    const uint32_t table = kind == kNeighbours ? table_of_class[neighbourhood(activity)] : 0;
    tables_used[at >> shift] = static_cast<uint8_t>(table);
    for (size_t i = at; i < at + taken && escape >= 0; ++i) {
      const uint32_t own = kind == kBase ? base_class(base[i], width) : table;
      if (frequencies[256 * own + symbols[i]] == 0 || symbols[i] == escape) escapes[escaped++] = symbols[i];
    }
    if (kind == kNeighbours && taken == kLanes)
      activity = next_activity(activity, symbols + at, static_cast<uint8_t>(centre), mask);
  }
  Coded coded[kMostTables][256];
  const uint32_t tables = kind == kAlone ? 1 : kMostTables;
  for (uint32_t t = 0; t < tables; ++t) {
    uint32_t start = 0;
    for (uint32_t j = 0; j <= mask; ++j) {
      const uint8_t symbol = zigzag(j, static_cast<uint8_t>(centre), mask);
      coded[t][symbol] = {frequencies[256 * t + symbol], start};
      start += frequencies[256 * t + symbol];
    }
  }
  for (uint32_t lane = 0; lane < lanes; ++lane) states[lane] = kLow;
  uint16_t* word = words + count;
  for (size_t i = count; i-- > 0;) {
    const uint32_t own = kind == kBase ? base_class(base[i], width) : tables_used[i >> shift];
    Coded c = coded[own][symbols[i]];
    if (escape >= 0 && (c.frequency == 0 || symbols[i] == escape)) c = coded[own][escape];
    uint32_t x = states[i & (lanes - 1)];
    if (x >= static_cast<uint64_t>(c.frequency) << (32 - kScaleBits)) {
      *--word = static_cast<uint16_t>(x);
      x >>= 16;
    }
    const uint32_t quotient = divide(x, c.frequency);
    states[i & (lanes - 1)] = (quotient << kScaleBits) + (x - quotient * c.frequency) + c.start;
  }
  written[0] = static_cast<size_t>(words + count - word);
  written[1] = escaped;
}
