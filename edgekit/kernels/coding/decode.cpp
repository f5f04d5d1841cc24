// Decoder: sixteen states take turns, so that the processor has sixteen chains of dependent steps to overlap.
#include "reader.h"
#include "steps.h"

namespace edgekit {
namespace {

const char* const kUnknown = "a stream of unknown kind";
const char* const kWide = "a symbol is wider than its stream's";
const char* const kShort = "a stream ends before its last symbol";
const char* const kEscapes = "a stream has too few escaped symbols";
const char* const kEnd = "a stream does not end where its symbols do";

// A table has an entry for each slot: symbol, frequency - 1 and the slot's place among the symbol's, from the lowest
// bits up in 8, 12 and 12 bits.
struct Stream {
  uint32_t width = 0, lanes = 0, kind = 0, tables = 1;
  uint8_t centre = 0, mask = 0;
  bool escaped = false;
  uint8_t escape = 0;
  uint8_t table_of_class[kClasses] = {};
  uint32_t states[kLanes] = {};
  const uint8_t* words = nullptr;
  const uint8_t* words_end = nullptr;
  const uint8_t* escapes = nullptr;
  const uint8_t* escapes_end = nullptr;
};

const char* read_kind(Reader& in, const uint8_t* base, Stream* s) {
  const uint32_t flags = in.byte();
  s->lanes = 1u << (flags & 7);
  s->kind = flags >> 3 & 3;
  s->escaped = flags >> 5 == 1;
  s->centre = in.byte();
  s->escape = s->escaped ? in.byte() : 0;
  if (s->lanes > kLanes || s->kind > kBase || flags >> 5 > 1) return kUnknown;
  if (s->kind == kNeighbours && s->lanes != kLanes) return kUnknown;
  if (s->centre > s->mask || s->escape > s->mask) return kWide;
  if (s->kind == kBase && base == nullptr) return "a stream refers to a base version, and there is none";
  if (s->kind == kBase) s->tables = s->width == 2 ? 4 : kMostTables;
  return nullptr;
}

const char* read_classes(Reader& in, Stream* s) {
  s->tables = (in.byte() & 15u) + 1;
  uint32_t before = 0;
  for (uint32_t table = 1; table < s->tables; ++table) {
    const uint32_t start = in.byte();
    if (start <= before || start >= kClasses) return "classes of neighbourhoods are not in order";
    for (uint32_t c = start; c < kClasses; ++c) s->table_of_class[c] = static_cast<uint8_t>(table);
    before = start;
  }
  return nullptr;
}

bool read_table(Reader& in, const Stream& s, uint32_t* table) {
  const uint32_t used = in.bits(8) + 1, k = in.bits(4);
  if (used > s.mask + 1u || k > kScaleBits) return false;
  uint32_t slot = 0;
  for (uint32_t j = 0; j < used; ++j) {
    const uint8_t symbol = zigzag(j, s.centre, s.mask);
    const uint32_t frequency = in.golomb(k, kScale - slot);
    for (uint32_t i = 0; i < frequency; ++i) table[slot + i] = symbol | (frequency - 1) << 8 | i << 20;
    slot += frequency;
  }
  return in.ok() && slot == kScale;
}

const char* read_parts(Reader& in, size_t count, Stream* s) {
  const size_t words = in.number(count), escapes = in.number(count);
  const uint8_t* states = in.take(4 * s->lanes);
  s->words = in.take(2 * words);
  s->escapes = in.take(escapes);
  if (!in.ok() || in.left() != 0) return "a stream's parts do not fit together";
  s->words_end = s->words + 2 * words;
  s->escapes_end = s->escapes + escapes;
  for (uint32_t lane = 0; lane < s->lanes; ++lane, states += 4) {
    s->states[lane] = states[0] | states[1] << 8 | states[2] << 16 | static_cast<uint32_t>(states[3]) << 24;
    if (s->states[lane] < kLow) return "a stream's parts do not fit together";
  }
  return nullptr;
}

// One symbol, when there may be no word left. A state is never below kLow here and after; so a slot is always below
// kScale and one word is enough.
inline bool step(Stream* s, uint32_t lane, const uint32_t* table, uint8_t* symbol) {
  uint32_t& x = s->states[lane];
  const uint32_t entry = table[x & (kScale - 1)];
  *symbol = static_cast<uint8_t>(entry);
  x = ((entry >> 8 & (kScale - 1)) + 1) * (x >> kScaleBits) + (entry >> 20);
  if (x >= kLow) return true;
  if (s->words == s->words_end) return false;
  x = x << 16 | s->words[0] | static_cast<uint32_t>(s->words[1]) << 8;
  s->words += 2;
  return true;
}

// The same for all sixteen lanes, when a word for each is left.
template <bool kOfBase>
inline void sixteen(uint32_t* states, const uint32_t* tables, const uint8_t* base, uint32_t width, uint8_t* symbols,
                    const uint8_t** words) {
  const uint8_t* next = *words;
#pragma GCC unroll 16
  for (uint32_t lane = 0; lane < kLanes; ++lane) {
    const uint32_t* table = kOfBase ? tables + kScale * base_class(base[lane], width) : tables;
    uint32_t x = states[lane];
    const uint32_t entry = table[x & (kScale - 1)];
    symbols[lane] = static_cast<uint8_t>(entry);
    x = ((entry >> 8 & (kScale - 1)) + 1) * (x >> kScaleBits) + (entry >> 20);
    const uint32_t word = next[0] | static_cast<uint32_t>(next[1]) << 8;
    const uint32_t low = x < kLow;  // no branch: nobody can predict it
    states[lane] = x << 16 * low | (word & (0u - low));
    next += 2 * low;
  }
  *words = next;
}

typedef uint8_t Sixteen __attribute__((vector_size(16), aligned(1), may_alias));
typedef uint64_t Two __attribute__((vector_size(16)));

// Whether one of sixteen symbols is this one.
inline bool has(const uint8_t* symbols, Sixteen symbol) {
  const Two equal = reinterpret_cast<Two>(*reinterpret_cast<const Sixteen*>(symbols) == symbol);
  return (equal[0] | equal[1]) != 0;
}

// Escaped symbols are rare: sixteen at a time are looked at for one.
bool unescape(Stream* s, uint8_t* symbols, size_t count) {
  const Sixteen escape = s->escape - Sixteen{};
  for (size_t at = 0; at < count; at += kLanes) {
    const size_t stop = count - at < kLanes ? count : at + kLanes;
    if (stop == at + kLanes && !has(symbols + at, escape)) continue;
    for (size_t i = at; i < stop; ++i) {
      if (symbols[i] != s->escape) continue;
      if (s->escapes == s->escapes_end) return false;
      symbols[i] = *s->escapes++;
    }
  }
  return true;
}

// As Steps, for every processor.
size_t steps_portable(uint32_t* states, const uint32_t* table, uint8_t* symbols, size_t steps, const uint8_t** words,
                      const uint8_t* words_end) {
  size_t done = 0;
  for (; done < steps && words_end - *words >= 2 * static_cast<ptrdiff_t>(kLanes); ++done, symbols += kLanes) {
    sixteen<false>(states, table, nullptr, 0, symbols, words);
  }
  return done;
}

// Symbols of whole steps from the front of what is left; with kNeighbours one step, because the next has another table.
size_t whole_steps(Stream* s, Steps fast, const uint32_t* table, const uint8_t* base, uint8_t* symbols, size_t count) {
  if (s->lanes != kLanes || count < kLanes) return 0;
  if (s->kind != kBase) {
    const size_t steps = s->kind == kNeighbours ? 1 : count / kLanes;
    return kLanes * fast(s->states, table, symbols, steps, &s->words, s->words_end);
  }
  if (s->words_end - s->words < 2 * static_cast<ptrdiff_t>(kLanes)) return 0;
  sixteen<true>(s->states, table, base, s->width, symbols, &s->words);
  return kLanes;
}

const char* decode(Stream s, const uint32_t* tables, const uint8_t* base, uint8_t* symbols, size_t count) {
  const Steps fastest = fastest_steps(), fast = fastest == nullptr ? steps_portable : fastest;
  uint32_t activity = 0;
  for (size_t at = 0, done = 0; at < count; at += done) {
    const uint32_t* table =
        s.kind == kNeighbours ? tables + kScale * s.table_of_class[neighbourhood(activity)] : tables;
    const uint8_t* older = s.kind == kBase ? base + at : nullptr;
    done = whole_steps(&s, fast, table, older, symbols + at, count - at);
    if (done == 0) {
      done = count - at < s.lanes ? count - at : s.lanes;
      for (uint32_t lane = 0; lane < done; ++lane) {
        const uint32_t* own = older == nullptr ? table : tables + kScale * base_class(older[lane], s.width);
        if (!step(&s, lane, own, symbols + at + lane)) return kShort;
      }
    }
    if (s.kind == kNeighbours) {  // whose activity is that of the symbols that are meant
      if (s.escaped && !unescape(&s, symbols + at, done)) return kEscapes;
      if (done == kLanes) activity = next_activity(activity, symbols + at, s.centre, s.mask);
    }
  }
  if (s.kind != kNeighbours && s.escaped && !unescape(&s, symbols, count)) return kEscapes;
  if (s.words != s.words_end || s.escapes != s.escapes_end) return kEnd;
  for (uint32_t lane = 0; lane < s.lanes; ++lane) {
    if (s.states[lane] != kLow) return kEnd;
  }
  return nullptr;
}

}  // namespace
}  // namespace edgekit

size_t EdgekitSymbolsWorkspace() { return edgekit::kMostTables * edgekit::kScale; }

const char* EdgekitSymbolsDecode(const uint8_t* data, size_t size, uint32_t width, const uint8_t* base,
                                 uint8_t* symbols, size_t count, uint32_t* workspace) {
  using namespace edgekit;
  if ((width != 2 && width != 4 && width != 8) || count > kMostSymbols) return kUnknown;
  Reader in(data, size);
  Stream s;
  s.width = width;
  s.mask = static_cast<uint8_t>((1u << width) - 1);
  if (const char* fault = read_kind(in, base, &s)) return fault;
  if (s.kind == kNeighbours) {
    if (const char* fault = read_classes(in, &s)) return fault;
  }
  // A base symbol may be wider than the stream's only by a caller's mistake; it must not reach past the tables.
  for (size_t i = 0; s.kind == kBase && i < count; ++i) {
    if (base[i] > s.mask) return kWide;
  }
  for (uint32_t table = 0; table < s.tables; ++table) {
    if (!read_table(in, s, workspace + kScale * table)) return "a table of frequencies is damaged";
  }
  in.drop_bits();
  if (const char* fault = read_parts(in, count, &s)) return fault;
  if (const char* fault = decode(s, workspace, base, symbols, count)) return fault;
  for (size_t i = 0; s.escaped && i < count; ++i) {
    if (symbols[i] > s.mask) return kWide;
  }
  return nullptr;
}
