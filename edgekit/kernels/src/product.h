// Y = X W^T with checked arguments, on ONNX Runtime's threads.
#pragma once
#include "arguments.h"

namespace edgekit {

// Returns null or an error: no memory, or an element of X that is infinite or not a number.
OrtStatus* multiply(const Api& api, const OrtKernelContext* context, OrtAllocator* allocator, const Kernels& kernels,
                    Format format, const Arguments& arguments);

}  // namespace edgekit
