// What operators share as ONNX Runtime sees them.
#pragma once
#include "kernels.h"
#include "ort_abi.h"

namespace edgekit {

// The kernels that EDGEKIT_ISA names, or the best; an error when this processor has no such.
OrtStatus* choose_kernels(const Api& api, const Kernels** out);

// Counts a node: a runtime sees by their number that the operators, not their function bodies, run.
void count_node();

extern const OrtCustomOp kCachedAttention;

}  // namespace edgekit
