// CachedAttention as ONNX Runtime sees it.
#if !defined(__arm__)  // attention.h says why
#include "attention_arguments.h"
#include "operator.h"

namespace edgekit {
namespace {

OrtStatus* EK_CALL create(const OrtCustomOp*, const OrtApi* table, const OrtKernelInfo* info, void** out) {
  const auto read = [&](const Api& api, AttentionAttributes* attributes) {
    return read_attributes(api, info, attributes);
  };
  return create_node<AttentionAttributes>(table, read, info, out);
}

OrtStatus* EK_CALL compute(void* kernel, OrtKernelContext* context) {
  const auto& node = *static_cast<const Node<AttentionAttributes>*>(kernel);
  AttentionArguments arguments{};
  if (OrtStatus* status = read_arguments(node.api, context, node.attributes, &arguments)) return status;
  return attend(node.api, context, node.allocator, *node.kernels->attention, node.attributes, arguments);
}

const char* EK_CALL name(const OrtCustomOp*) { return "CachedAttention"; }
ElementType EK_CALL input_type(const OrtCustomOp*, size_t index) {
  return index == kEnds || index == kTotal ? kInt32 : kFloat;
}
size_t EK_CALL input_count(const OrtCustomOp*) { return kAttentionInputs; }
ElementType EK_CALL output_type(const OrtCustomOp*, size_t) { return kFloat; }
size_t EK_CALL output_count(const OrtCustomOp*) { return 3; }
Characteristic EK_CALL input_kind(const OrtCustomOp*, size_t index) {
  return index == kKey || index == kValue || index >= kCos ? kOptional : kRequired;
}

}  // namespace

const OrtCustomOp kCachedAttention = {
    kApiVersion, nullptr,      name,         provider, input_type,
    input_count, output_type,  output_count, nullptr,  destroy_node<AttentionAttributes>,
    input_kind,  all_required, on_cpu,       one,      one,
    one,         one,          create,       compute,  nullptr,
    one,         any_version,  nullptr,      nullptr,  nullptr,
    nullptr};

}  // namespace edgekit
#endif
