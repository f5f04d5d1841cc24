// CachedAttention as ONNX Runtime sees it.
#if !defined(__arm__)  // attention.h says why
#include "attention_arguments.h"
#include "operator.h"

namespace edgekit {
namespace {

// One node: lives in memory of the allocator that it names.
struct Node {
  Api api;
  OrtAllocator* allocator;
  const AttentionKernels* kernels;
  AttentionAttributes attributes;
};

OrtStatus* EK_CALL create(const OrtCustomOp*, const OrtApi* table, const OrtKernelInfo* info, void** out) {
  const Api api(table);
  const Kernels* kernels = nullptr;
  if (OrtStatus* status = choose_kernels(api, &kernels)) return status;
  AttentionAttributes attributes;
  if (OrtStatus* status = read_attributes(api, info, &attributes)) return status;
  OrtAllocator* allocator = nullptr;
  if (OrtStatus* status = api.allocator(info, &allocator)) return status;
  void* memory = nullptr;
  if (OrtStatus* status = api.allocate(allocator, sizeof(Node), &memory)) {
    api.release_allocator(allocator);
    return status;
  }
  Node* node = static_cast<Node*>(memory);
  *node = Node{api, allocator, kernels->attention, attributes};
  *out = node;
  count_node();
  return nullptr;
}

void EK_CALL destroy(void* kernel) {
  const Node node = *static_cast<Node*>(kernel);
  if (OrtStatus* status = node.api.free(node.allocator, kernel)) node.api.release_status(status);
  node.api.release_allocator(node.allocator);
}

OrtStatus* EK_CALL compute(void* kernel, OrtKernelContext* context) {
  const Node& node = *static_cast<const Node*>(kernel);
  AttentionArguments arguments{};
  if (OrtStatus* status = read_arguments(node.api, context, node.attributes, &arguments)) return status;
  return attend(node.api, context, node.allocator, *node.kernels, node.attributes, arguments);
}

const char* EK_CALL name(const OrtCustomOp*) { return "CachedAttention"; }
const char* EK_CALL provider(const OrtCustomOp*) { return "CPUExecutionProvider"; }
ElementType EK_CALL input_type(const OrtCustomOp*, size_t index) {
  return index == kEnds || index == kTotal ? kInt32 : kFloat;
}
size_t EK_CALL input_count(const OrtCustomOp*) { return kAttentionInputs; }
ElementType EK_CALL output_type(const OrtCustomOp*, size_t) { return kFloat; }
size_t EK_CALL output_count(const OrtCustomOp*) { return 3; }
Characteristic EK_CALL input_kind(const OrtCustomOp*, size_t index) {
  return index == kKey || index == kValue || index >= kCos ? kOptional : kRequired;
}
Characteristic EK_CALL output_kind(const OrtCustomOp*, size_t) { return kRequired; }
int EK_CALL on_cpu(const OrtCustomOp*, size_t) { return 0; }
int EK_CALL one(const OrtCustomOp*) { return 1; }
int EK_CALL any_version(const OrtCustomOp*) { return 0x7FFFFFFF; }

}  // namespace

const OrtCustomOp kCachedAttention = {kApiVersion,  nullptr, name,    provider,   input_type,  input_count, output_type,
                                      output_count, nullptr, destroy, input_kind, output_kind, on_cpu,      one,
                                      one,          one,     one,     create,     compute,     nullptr,     one,
                                      any_version,  nullptr, nullptr, nullptr,    nullptr};

}  // namespace edgekit
#endif
