// Decodes a file of streams and compares the symbols; codes them anew with one table and decodes that: on every
// processor the same. A record is four little-endian numbers of 32 bits (width, count, bytes of base, bytes of stream)
// and the base, the symbols and the stream.
#include <stdio.h>
#include <string.h>

#include <vector>

#include "symbols.h"

namespace {

bool read(FILE* file, std::vector<uint8_t>* data, size_t size) {
  data->resize(size);
  return size == 0 || fread(data->data(), 1, size, file) == size;
}

// Whether symbols coded with one plain table come back; lanes and words are what the encoder chose.
bool coded_anew(const std::vector<uint8_t>& symbols, uint32_t width) {
  const uint32_t each = edgekit::kScale >> width;
  std::vector<uint32_t> frequencies(edgekit::kMostTables * 256);
  for (uint32_t symbol = 0; symbol < 1u << width; ++symbol) frequencies[symbol] = each;
  std::vector<uint32_t> states(16), workspace(EdgekitSymbolsWorkspace());
  std::vector<uint16_t> words(symbols.size());
  std::vector<uint8_t> escapes(symbols.size()), used(symbols.size()), classes(edgekit::kClasses), back(symbols.size());
  size_t written[2] = {};
  EdgekitSymbolsEncode(symbols.data(), symbols.size(), width, nullptr, 16, edgekit::kAlone, 0, frequencies.data(),
                       classes.data(), -1, states.data(), words.data(), escapes.data(), used.data(), written);
  // Head: sixteen lanes, centre 0, all symbols with order 12 frequencies: 13 bits each and one that says it is short.
  std::vector<uint8_t> stream = {4, 0};
  std::vector<bool> bits;
  const auto put = [&](uint32_t value, int count) {
    while (count-- > 0) bits.push_back(value >> count & 1);
  };
  put((1u << width) - 1, 8), put(12, 4);
  for (uint32_t symbol = 0; symbol < 1u << width; ++symbol) put(1, 1), put(each, 12);
  while (bits.size() % 8) bits.push_back(false);
  for (size_t i = 0; i < bits.size(); i += 8) {
    uint8_t byte = 0;
    for (size_t j = 0; j < 8; ++j) byte = static_cast<uint8_t>(byte << 1 | bits[i + j]);
    stream.push_back(byte);
  }
  for (size_t left = written[0];; left >>= 7) {
    stream.push_back(static_cast<uint8_t>((left & 127) | (left > 127 ? 128 : 0)));
    if (left <= 127) break;
  }
  stream.push_back(0);
  for (uint32_t state : states) {
    for (int shift = 0; shift < 32; shift += 8) stream.push_back(static_cast<uint8_t>(state >> shift));
  }
  for (size_t i = symbols.size() - written[0]; i < symbols.size(); ++i) {
    stream.push_back(static_cast<uint8_t>(words[i]));
    stream.push_back(static_cast<uint8_t>(words[i] >> 8));
  }
  const char* fault =
      EdgekitSymbolsDecode(stream.data(), stream.size(), width, nullptr, back.data(), back.size(), workspace.data());
  if (fault != nullptr) printf("%s\n", fault);
  return fault == nullptr && back == symbols;
}

}  // namespace

int main(int count_of_arguments, char** arguments) {
  FILE* file = count_of_arguments == 2 ? fopen(arguments[1], "rb") : nullptr;
  if (file == nullptr) return 2;
  uint32_t head[4];
  int records = 0;
  std::vector<uint32_t> workspace(EdgekitSymbolsWorkspace());
  for (; fread(head, sizeof(head), 1, file) == 1; ++records) {
    std::vector<uint8_t> base, symbols, stream;
    if (!read(file, &base, head[2]) || !read(file, &symbols, head[1]) || !read(file, &stream, head[3])) return 2;
    std::vector<uint8_t> found(symbols.size());
    const char* fault =
        EdgekitSymbolsDecode(stream.data(), stream.size(), head[0], base.empty() ? nullptr : base.data(), found.data(),
                             found.size(), workspace.data());
    if (fault != nullptr || found != symbols || !coded_anew(symbols, head[0])) {
      printf("record %d: %s\n", records, fault == nullptr ? "other symbols" : fault);
      return 1;
    }
  }
  printf("%d exact\n", records);
  return records == 0;
}
