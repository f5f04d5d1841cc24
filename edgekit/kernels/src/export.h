// How the library's functions become visible, and the one that both C and Java programs ask.
#pragma once
#include "ort_abi.h"

#if defined(_WIN32)
#define EK_EXPORT extern "C" __declspec(dllexport)
#else
#define EK_EXPORT extern "C" __attribute__((visibility("default")))
#endif

// "<version> <active instruction set> <those this processor has, best first>; <nodes created so far>". The active one
// is "none" when EDGEKIT_ISA names one that is not there. Valid until the next call.
EK_EXPORT const char* EdgekitOpsVersion();
