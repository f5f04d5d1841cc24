// Which kernels this processor can run.
#pragma once
#include "kernels.h"

namespace edgekit {

struct Candidate {
  const Kernels* kernels;
  bool (*supported)();
};

// Best first; the last is scalar.
extern const Candidate kCandidates[];
extern const size_t kCandidateCount;

// The kernels that EDGEKIT_ISA names, or the best; null when it names none that this processor has.
const Kernels* choose();

// The value of EDGEKIT_ISA, or null.
const char* forced();

bool same_text(const char* a, const char* b);

}  // namespace edgekit
