// What the fuzzers of operators share: numbers and tensors drawn from bytes, and what results are compared by.
#pragma once
#include <algorithm>
#include <cstdio>
#include <cstring>

#include "fake_ort.h"

extern "C" edgekit::OrtStatus* RegisterCustomOps(edgekit::OrtSessionOptions* options, const edgekit::OrtApiBase* base);

namespace edgekit {
namespace {

constexpr size_t kMostBytes = 1 << 20;  // of a tensor: larger shapes are claimed, never filled

// Draws numbers from the fuzzer's bytes, zeros when they are used up.
struct Source {
  const uint8_t* at;
  size_t left;
  uint8_t byte() { return left ? --left, *at++ : 0; }
  int64_t number() {
    const uint8_t kind = byte();
    if (kind < 200) return kind % 100;
    if (kind < 250) return byte() * 5 + kind % 5;
    int64_t wild = 0;
    for (int i = 0; i < 8; ++i) wild = wild << 8 | byte();
    return wild;
  }
};

// Which instruction set a node takes is asked for when it is made.
const OrtCustomOpDomain& operators(const char* isa) {
  setenv("EDGEKIT_ISA", isa, 1);
  static OrtSessionOptions options;
  if (options.domain == nullptr && RegisterCustomOps(&options, fake::base()) != nullptr) std::abort();
  return *options.domain;
}

// A tensor of the wanted shape, or now and then of another.
OrtValue tensor(Source& source, ElementType type, std::vector<int64_t> dims) {
  const uint8_t oddity = source.byte();
  if (oddity == 255) type = static_cast<ElementType>(source.byte() % 12);
  if (oddity == 254) dims.push_back(source.number());
  if (oddity == 253 && !dims.empty()) dims.pop_back();
  if (oddity == 252 && !dims.empty()) dims[source.byte() % dims.size()] = source.number();
  size_t bytes = type == kInt64 ? 8 : type == kFloat || type == kInt32 ? 4 : type == kFloat16 ? 2 : 1;
  bool whole = true;
  for (int64_t d : dims) {
    whole &= d >= 0 && (d == 0 || bytes <= kMostBytes / static_cast<size_t>(d));
    bytes = whole ? bytes * static_cast<size_t>(d) : 0;
  }
  OrtValue value{{type, dims}, std::malloc(whole && bytes ? bytes : 1)};
  const uint8_t seed = source.byte();
  for (size_t i = 0; whole && i < bytes; ++i) {
    static_cast<uint8_t*>(value.data)[i] = static_cast<uint8_t>(i < 64 ? source.byte() : (i * 37 + seed) & 0x3F);
  }
  return value;
}

// A shape too large to be filled is only good for a refusal: what is claimed must then not be read.
bool is_whole(const OrtValue& value) {
  size_t bytes = value.info.type == kInt64 ? 8 : 4;
  for (int64_t d : value.info.dims) {
    if (d < 0 || (d > 0 && bytes > kMostBytes / static_cast<size_t>(d))) return false;
    bytes *= static_cast<size_t>(d);
  }
  return true;
}

// The same bits, or NaN in both: of two NaN scales that are added, the order of the operands decides whose payload
// stays, and that is the compiler's.
template <typename Bits>
bool same(const std::vector<uint8_t>& a, const std::vector<uint8_t>& b, Bits infinity) {
  if (a.size() != b.size()) return false;
  for (size_t i = 0; i + sizeof(Bits) <= a.size(); i += sizeof(Bits)) {
    Bits one, other;
    std::memcpy(&one, &a[i], sizeof one);
    std::memcpy(&other, &b[i], sizeof other);
    const Bits magnitude = static_cast<Bits>(~Bits{0}) >> 1;
    if (one != other && ((one & magnitude) <= infinity || (other & magnitude) <= infinity)) return false;
  }
  return true;
}

void nothing_is_held() {
  if (fake::held == 0) return;
  std::fprintf(stderr, "%d objects were not given back\n", fake::held);
  std::abort();
}

}  // namespace
}  // namespace edgekit
