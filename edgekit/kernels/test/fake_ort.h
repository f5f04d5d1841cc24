// The entries of OrtApi that the library uses, on plain memory: every tensor is a block of exactly its own size, so
// that a sanitizer sees what is read or written beyond it; everything handed out is counted; any call can be made to
// fail.
#pragma once
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>
#include <vector>

#include "ort_abi.h"

namespace edgekit {

struct OrtStatus {
  std::string message;
};
struct OrtTensorTypeAndShapeInfo {
  ElementType type;
  std::vector<int64_t> dims;
};
struct OrtValue {
  OrtTensorTypeAndShapeInfo info;
  void* data = nullptr;
};
struct OrtKernelInfo {
  int64_t k, n, block;
  int64_t bits = 8, block_size = 64;
  std::map<std::string, double> attention = {};  // CachedAttention's; one that is not there is missing
};
struct OrtAllocator {};
struct OrtKernelContext {
  std::vector<OrtValue*> inputs;
  OrtValue output;
  OrtValue caches[2] = {};  // CachedAttention's other outputs; kept where they have memory: past and present are one
  OrtValue& output_at(size_t index) { return index == 0 ? output : caches[index - 1]; }
};
struct OrtCustomOpDomain {
  std::vector<const OrtCustomOp*> ops;
};
struct OrtSessionOptions {
  OrtCustomOpDomain* domain = nullptr;
};

namespace fake {

inline int held = 0;      // memory, infos and statuses that were handed out and not given back
inline int calls = 0;     // that can fail
inline int fail_at = -1;  // the call that does
inline OrtAllocator allocator;
constexpr size_t kMostOutput = 1 << 26;  // bytes

inline OrtStatus* outcome() { return calls++ == fail_at ? (++held, new OrtStatus{"injected failure"}) : nullptr; }

inline OrtStatus* create_status(int, const char* text) { return ++held, new OrtStatus{text}; }
inline void release_status(OrtStatus* status) { --held, delete status; }
inline OrtStatus* create_domain(const char*, OrtCustomOpDomain** out) {
  if (OrtStatus* status = outcome()) return status;
  *out = new OrtCustomOpDomain;
  return nullptr;
}
inline OrtStatus* add_operator(OrtCustomOpDomain* domain, const OrtCustomOp* op) {
  if (OrtStatus* status = outcome()) return status;
  domain->ops.push_back(op);
  return nullptr;
}
inline OrtStatus* add_domain(OrtSessionOptions* options, OrtCustomOpDomain* domain) {
  options->domain = domain;
  return outcome();
}
inline OrtStatus* data(OrtValue* value, void** out) {
  *out = value->data;
  return outcome();
}
inline OrtStatus* type_and_shape(const OrtValue* value, OrtTensorTypeAndShapeInfo** out) {
  if (OrtStatus* status = outcome()) return status;
  *out = (++held, new OrtTensorTypeAndShapeInfo(value->info));
  return nullptr;
}
inline OrtStatus* element_type(const OrtTensorTypeAndShapeInfo* info, ElementType* out) {
  *out = info->type;
  return outcome();
}
inline OrtStatus* rank(const OrtTensorTypeAndShapeInfo* info, size_t* out) {
  *out = info->dims.size();
  return outcome();
}
inline OrtStatus* dimensions(const OrtTensorTypeAndShapeInfo* info, int64_t* out, size_t count) {
  std::copy_n(info->dims.begin(), count, out);
  return outcome();
}
inline void release_info(OrtTensorTypeAndShapeInfo* info) { --held, delete info; }
inline OrtStatus* allocate(OrtAllocator*, size_t bytes, void** out) {
  if (OrtStatus* status = outcome()) return status;
  *out = (++held, std::malloc(bytes));
  return nullptr;
}
inline OrtStatus* deallocate(OrtAllocator*, void* memory) {
  --held, std::free(memory);
  return nullptr;
}
template <class Number>
OrtStatus* of_attention(const OrtKernelInfo* info, const char* name, Number* out) {
  const auto found = info->attention.find(name);
  if (found == info->attention.end()) return create_status(kFail, "no such attribute");
  *out = static_cast<Number>(found->second);
  return outcome();
}
inline OrtStatus* float_attribute(const OrtKernelInfo* info, const char* name, float* out) {
  return of_attention(info, name, out);
}
inline OrtStatus* attribute(const OrtKernelInfo* info, const char* name, int64_t* out) {
  if (!info->attention.empty()) return of_attention(info, name, out);
  *out = std::strcmp(name, "K") == 0            ? info->k
         : std::strcmp(name, "N") == 0          ? info->n
         : std::strcmp(name, "bits") == 0       ? info->bits
         : std::strcmp(name, "block_size") == 0 ? info->block_size
                                                : info->block;
  return outcome();
}
inline OrtStatus* input_count(const OrtKernelContext* context, size_t* out) {
  *out = context->inputs.size();
  return outcome();
}
inline OrtStatus* input(const OrtKernelContext* context, size_t index, const OrtValue** out) {
  *out = context->inputs[index];
  return outcome();
}
inline OrtStatus* output(OrtKernelContext* context, size_t index, const int64_t* shape, size_t rank, OrtValue** out) {
  if (OrtStatus* status = outcome()) return status;
  size_t bytes = context->inputs[0]->info.type == kFloat16 ? 2 : 4;  // Y has the type of X
  for (size_t i = 0; i < rank; ++i) {
    if (shape[i] > 0 && bytes > kMostOutput / static_cast<size_t>(shape[i])) return create_status(kFail, "no memory");
    bytes *= static_cast<size_t>(shape[i]);
  }
  OrtValue& value = context->output_at(index);
  value.info.dims.assign(shape, shape + rank);
  value.data = std::realloc(value.data, bytes ? bytes : 1);
  *out = &value;
  return nullptr;
}
inline OrtStatus* parallel_for(const OrtKernelContext*, void (*body)(void*, size_t), size_t total, size_t, void* data) {
  for (size_t i = total; i-- > 0;) body(data, i);  // in an order that nobody may count on
  return outcome();
}
inline OrtStatus* kernel_allocator(const OrtKernelInfo*, int, OrtAllocator** out) {
  if (OrtStatus* status = outcome()) return status;
  *out = (++held, &allocator);
  return nullptr;
}
inline void release_allocator(OrtAllocator*) { --held; }

template <class Function>
void set(void** table, ApiIndex index, Function* function) {
  table[index] = reinterpret_cast<void*>(function);
}

inline const OrtApi* api(uint32_t version) {
  static void* table[kApiKernelInfoGetAllocator + 1];
  set(table, kApiCreateStatus, create_status), set(table, kApiReleaseStatus, release_status);
  set(table, kApiCreateCustomOpDomain, create_domain), set(table, kApiCustomOpDomain_Add, add_operator);
  set(table, kApiAddCustomOpDomain, add_domain), set(table, kApiGetTensorMutableData, data);
  set(table, kApiGetTensorElementType, element_type), set(table, kApiGetDimensionsCount, rank);
  set(table, kApiGetDimensions, dimensions), set(table, kApiGetTensorTypeAndShape, type_and_shape);
  set(table, kApiAllocatorAlloc, allocate), set(table, kApiAllocatorFree, deallocate);
  set(table, kApiKernelInfoGetAttribute_int64, attribute), set(table, kApiKernelContext_GetInputCount, input_count);
  set(table, kApiKernelInfoGetAttribute_float, float_attribute);
  set(table, kApiKernelContext_GetInput, input), set(table, kApiKernelContext_GetOutput, output);
  set(table, kApiReleaseTensorTypeAndShapeInfo, release_info), set(table, kApiReleaseAllocator, release_allocator);
  set(table, kApiKernelContext_ParallelFor, parallel_for), set(table, kApiKernelInfoGetAllocator, kernel_allocator);
  return version <= kApiVersion ? reinterpret_cast<const OrtApi*>(table) : nullptr;
}

inline const OrtApiBase* base() {
  static const OrtApiBase found{[](uint32_t version) { return api(version); }, [] { return "1.18.0"; }};
  return &found;
}

// One call of an operator from creation to destruction; the error's text, or nothing.
inline std::string run(const OrtCustomOp* op, const OrtKernelInfo& info, OrtKernelContext& context) {
  void* kernel = nullptr;
  OrtStatus* status = op->CreateKernelV2(op, api(kApiVersion), &info, &kernel);
  if (status == nullptr) {
    status = op->KernelComputeV2(kernel, &context);
    op->KernelDestroy(kernel);
  }
  std::string message = status ? status->message : "";
  if (status) release_status(status);
  return message;
}

}  // namespace fake
}  // namespace edgekit
