// Fuzzing the decoder of packs: any bytes as a stream, with and without a base version, under the sanitizers.
// An input is the width (2, 4 or 8 by its lowest bits), two bytes of count, one that says whether there is a base, and
// the stream.
#include <stdlib.h>
#include <string.h>

#include <vector>

#include "symbols.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < 4) return 0;
  const uint32_t width = 2u << data[0] % 3;
  const size_t count = (data[1] | static_cast<size_t>(data[2]) << 8) + 1;
  // Each piece of memory is exactly as large as it says, so that one byte past it is seen.
  std::vector<uint8_t> stream(data + 4, data + size), symbols(count), base(count);
  for (size_t i = 0; i < count; ++i) base[i] = static_cast<uint8_t>((i * 7) & ((1u << width) - 1));
  static std::vector<uint32_t> workspace(EdgekitSymbolsWorkspace());  // filling it anew would take most of the time
  const uint8_t* older = data[3] % 2 ? base.data() : nullptr;
  const char* fault =
      EdgekitSymbolsDecode(stream.data(), stream.size(), width, older, symbols.data(), count, workspace.data());
  if (fault != nullptr) return 0;
  for (uint8_t symbol : symbols) {
    if (symbol >> 1 >> (width - 1)) abort();
  }
  return 0;
}
