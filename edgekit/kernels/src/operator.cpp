// The custom operators as ONNX Runtime sees them, and what the library exports for C.
#include "operator.h"

#include "arguments.h"
#include "export.h"
#include "message.h"
#include "processor.h"
#include "product.h"

#define EK_VERSION "0.1.0"

namespace edgekit {
namespace {

// An operator for one element type of X and of scales. ONNX Runtime hands the OrtCustomOp back.
struct Operator {
  OrtCustomOp interface;
  Format format;  // kSparse4 for SparseMatMul of any bits
  bool half, half_scales;
};

// Nodes created since the library was loaded.
int64_t created = 0;

Message& list_supported(Message& message) {
  const char* separator = "";
  for (size_t i = 0; i < kCandidateCount; ++i) {
    if (!kCandidates[i].supported()) continue;
    message << separator << kCandidates[i].kernels->name;
    separator = " ";
  }
  return message;
}

const Operator& self(const OrtCustomOp* op) { return *reinterpret_cast<const Operator*>(op); }

OrtStatus* EK_CALL create(const OrtCustomOp* op, const OrtApi* table, const OrtKernelInfo* info, void** out) {
  const auto read = [&](const Api& api, Attributes* attributes) {
    return read_attributes(api, info, self(op).format, self(op).half, attributes);
  };
  return create_node<Attributes>(table, read, info, out);
}

OrtStatus* EK_CALL compute(void* kernel, OrtKernelContext* context) {
  const auto& node = *static_cast<const Node<Attributes>*>(kernel);
  Arguments arguments{};
  if (OrtStatus* status = read_arguments(node.api, context, node.attributes, &arguments)) return status;
  return multiply(node.api, context, node.allocator, *node.kernels, node.attributes.format, arguments);
}

const char* EK_CALL name(const OrtCustomOp* op) { return operator_name(self(op).format); }
ElementType EK_CALL input_type(const OrtCustomOp* op, size_t index) {
  if (index == 0) return self(op).half ? kFloat16 : kFloat;
  if (index == 2 && self(op).half_scales) return kFloat16;
  return index == 1 ? kUint8 : kFloat;
}
size_t EK_CALL input_count(const OrtCustomOp*) { return 4; }
ElementType EK_CALL output_type(const OrtCustomOp* op, size_t) { return self(op).half ? kFloat16 : kFloat; }
size_t EK_CALL output_count(const OrtCustomOp*) { return 1; }
Characteristic EK_CALL input_kind(const OrtCustomOp*, size_t index) { return index == 3 ? kOptional : kRequired; }

constexpr Operator make(Format format, bool half, bool half_scales = false) {
  return Operator{{kApiVersion, nullptr,      name,         provider, input_type,
                   input_count, output_type,  output_count, nullptr,  destroy_node<Attributes>,
                   input_kind,  all_required, on_cpu,       one,      one,
                   one,         one,          create,       compute,  nullptr,
                   one,         any_version,  nullptr,      nullptr,  nullptr,
                   nullptr},
                  format,
                  half,
                  half_scales};
}

const Operator kOperators[] = {make(kTernary, false),   make(kTernary, true),     make(kInt8, false),
                               make(kInt8, true),       make(kSparse4, false),    make(kSparse4, true),
                               make(kInt4, false),      make(kInt4, true),        make(kInt8Blocks, false),
                               make(kInt8Blocks, true), make(kInt4, false, true), make(kInt4, true, true)};

}  // namespace

OrtStatus* choose_kernels(const Api& api, const Kernels** out) {
  *out = choose();
  if (*out != nullptr) return nullptr;
  Message message;
  message << "EDGEKIT_ISA=" << forced() << ": this processor cannot run it; it has ";
  list_supported(message) << ". Unset EDGEKIT_ISA to let the library choose";
  return api.error(kInvalidArgument, message.text());
}

void count_node() { __atomic_fetch_add(&created, 1, __ATOMIC_RELAXED); }

}  // namespace edgekit

EK_EXPORT edgekit::OrtStatus* EK_CALL RegisterCustomOps(edgekit::OrtSessionOptions* options,
                                                        const edgekit::OrtApiBase* base) {
  using namespace edgekit;
  const OrtApi* table = base->GetApi(kApiVersion);
  if (table == nullptr) return nullptr;  // older than 1.18: no way to say so; the operators stay unknown
  const Api api(table);
  // Each node chooses when it is made; what cannot be had is told as early as possible.
  const Kernels* kernels = nullptr;
  if (OrtStatus* status = choose_kernels(api, &kernels)) return status;
  OrtCustomOpDomain* domain = nullptr;
  if (OrtStatus* status = api.create_domain("ai.edgekit", &domain)) return status;
  for (const Operator& op : kOperators) {
    if (OrtStatus* status = api.add_operator(domain, &op.interface)) return status;
  }
  if (OrtStatus* status = api.add_operator(domain, &kExpertMatMul)) return status;
#if !defined(__arm__)
  // Its function body is faster than portable C++, which is for those who ask for it.
  if (kernels != &kScalar || forced() != nullptr) {
    if (OrtStatus* status = api.add_operator(domain, &kCachedAttention)) return status;
  }
#endif
  return api.add_domain(options, domain);  // which keeps it; sessions need it for as long as they live
}

EK_EXPORT const char* EdgekitOpsVersion() {
  using namespace edgekit;
  static Message text;
  const Kernels* kernels = choose();
  Message fresh;
  fresh << EK_VERSION << " " << (kernels ? kernels->name : "none") << " ";
  list_supported(fresh) << "; " << __atomic_load_n(&created, __ATOMIC_RELAXED);
  text = fresh;
  return text.text();
}
