// What operators share as ONNX Runtime sees them.
#pragma once
#include "kernels.h"
#include "ort_abi.h"

namespace edgekit {

// The kernels that EDGEKIT_ISA names, or the best; an error when this processor has no such.
OrtStatus* choose_kernels(const Api& api, const Kernels** out);

// Counts a node: a runtime sees by their number that the operators, not their function bodies, run.
void count_node();

// One node: lives in memory of the allocator that it names.
template <class Attributes>
struct Node {
  Api api;
  OrtAllocator* allocator;
  const Kernels* kernels;
  Attributes attributes;
};

// Makes a node; read(api, &attributes) reads and checks what it says of itself. Returns null or an error.
template <class Attributes, class Read>
OrtStatus* create_node(const OrtApi* table, const Read& read, const OrtKernelInfo* info, void** out) {
  const Api api(table);
  const Kernels* kernels = nullptr;
  if (OrtStatus* status = choose_kernels(api, &kernels)) return status;
  Attributes attributes;
  if (OrtStatus* status = read(api, &attributes)) return status;
  OrtAllocator* allocator = nullptr;
  if (OrtStatus* status = api.allocator(info, &allocator)) return status;
  void* memory = nullptr;
  if (OrtStatus* status = api.allocate(allocator, sizeof(Node<Attributes>), &memory)) {
    api.release_allocator(allocator);
    return status;
  }
  Node<Attributes>* node = static_cast<Node<Attributes>*>(memory);
  *node = {api, allocator, kernels, attributes};
  *out = node;
  count_node();
  return nullptr;
}

template <class Attributes>
void EK_CALL destroy_node(void* kernel) {
  const Node<Attributes> node = *static_cast<Node<Attributes>*>(kernel);
  if (OrtStatus* status = node.api.free(node.allocator, kernel)) node.api.release_status(status);
  node.api.release_allocator(node.allocator);
}

inline const char* EK_CALL provider(const OrtCustomOp*) { return "CPUExecutionProvider"; }
inline Characteristic EK_CALL all_required(const OrtCustomOp*, size_t) { return kRequired; }
inline int EK_CALL on_cpu(const OrtCustomOp*, size_t) { return 0; }
inline int EK_CALL one(const OrtCustomOp*) { return 1; }
inline int EK_CALL any_version(const OrtCustomOp*) { return 0x7FFFFFFF; }

extern const OrtCustomOp kExpertMatMul, kCachedAttention;

}  // namespace edgekit
