// ExpertMatMul as ONNX Runtime sees it.
#include "experts.h"
#include "operator.h"

namespace edgekit {
namespace {

OrtStatus* EK_CALL create(const OrtCustomOp*, const OrtApi* table, const OrtKernelInfo* info, void** out) {
  const auto read = [&](const Api& api, ExpertAttributes* attributes) {
    return read_attributes(api, info, attributes);
  };
  return create_node<ExpertAttributes>(table, read, info, out);
}

OrtStatus* EK_CALL compute(void* kernel, OrtKernelContext* context) {
  const auto& node = *static_cast<const Node<ExpertAttributes>*>(kernel);
  ExpertArguments arguments{};
  if (OrtStatus* status = read_arguments(node.api, context, node.attributes, &arguments)) return status;
  return multiply_by_experts(node.api, context, node.allocator, *node.kernels, node.attributes.format, arguments);
}

const char* EK_CALL name(const OrtCustomOp*) { return "ExpertMatMul"; }
ElementType EK_CALL input_type(const OrtCustomOp*, size_t index) {
  return index == kExpertIndex ? kInt64 : index == kExpertW ? kUint8 : kFloat;
}
size_t EK_CALL input_count(const OrtCustomOp*) { return kExpertInputs; }
ElementType EK_CALL output_type(const OrtCustomOp*, size_t) { return kFloat; }
size_t EK_CALL output_count(const OrtCustomOp*) { return 1; }

}  // namespace

const OrtCustomOp kExpertMatMul = {kApiVersion,  nullptr,      name,         provider, input_type,
                                   input_count,  output_type,  output_count, nullptr,  destroy_node<ExpertAttributes>,
                                   all_required, all_required, on_cpu,       one,      one,
                                   one,          one,          create,       compute,  nullptr,
                                   one,          any_version,  nullptr,      nullptr,  nullptr,
                                   nullptr};

}  // namespace edgekit
