// The inner loop of the decoder, for processors that have more than the portable one uses.
#pragma once
#include "symbols.h"

namespace edgekit {

// Steps of kLanes symbols that all have the same table: decodes at most `steps` of them into `symbols`, as many as have
// a word for every lane before `words_end`, moves `words` on and returns how many. Null where the processor has no such
// loop.
using Steps = size_t (*)(uint32_t* states, const uint32_t* table, uint8_t* symbols, size_t steps, const uint8_t** words,
                         const uint8_t* words_end);
Steps fastest_steps();

}  // namespace edgekit
