// Sparse rows where VBMI2 has a vpexpandb: the rest of that instruction set is AVX512-VNNI's.
#pragma once
#include "kernels.h"

namespace edgekit {

bool sparse_vbmi2(Format format, SparseRow* row, const int8_t* x, size_t blocks, bool each, int32_t* sums);
bool expand_vbmi2(Format format, SparseRow* row, size_t blocks, uint8_t* codes);

}  // namespace edgekit
