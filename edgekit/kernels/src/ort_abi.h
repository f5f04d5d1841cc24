// The part of ONNX Runtime's C API that a custom operator needs, written out so that the library builds without its
// headers. OrtApi is a table of function pointers that only ever grows: an entry is known by its index. A test compiles
// these numbers and OrtCustomOp's layout against the real header (tests/native/test_abi_header.py).
#pragma once
#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32) && !defined(_WIN64)
#define EK_CALL __stdcall
#else
#define EK_CALL
#endif

namespace edgekit {

constexpr uint32_t kApiVersion = 18;  // ORT 1.18: the oldest with KernelInfoGetAllocator

struct OrtApi {
  void* entries[1];
};
struct OrtApiBase {
  const OrtApi*(EK_CALL* GetApi)(uint32_t version);
  const char*(EK_CALL* GetVersionString)();
};
struct OrtStatus;
struct OrtSessionOptions;
struct OrtCustomOpDomain;
struct OrtKernelInfo;
struct OrtKernelContext;
struct OrtShapeInferContext;
struct OrtValue;
struct OrtTensorTypeAndShapeInfo;
struct OrtAllocator;

enum ElementType : int { kUndefined = 0, kFloat = 1, kUint8 = 2, kInt32 = 6, kInt64 = 7, kFloat16 = 10 };
enum Characteristic : int { kRequired = 0, kOptional = 1 };
enum ErrorCode : int { kFail = 1, kInvalidArgument = 2, kNotImplemented = 9 };

enum ApiIndex : int {
  kApiCreateStatus = 0,
  kApiCreateCustomOpDomain = 26,
  kApiCustomOpDomain_Add = 27,
  kApiAddCustomOpDomain = 28,
  kApiGetTensorMutableData = 51,
  kApiGetTensorElementType = 60,
  kApiGetDimensionsCount = 61,
  kApiGetDimensions = 62,
  kApiGetTensorTypeAndShape = 65,
  kApiAllocatorAlloc = 75,
  kApiAllocatorFree = 76,
  kApiKernelInfoGetAttribute_float = 85,
  kApiKernelInfoGetAttribute_int64 = 86,
  kApiKernelContext_GetInputCount = 88,
  kApiKernelContext_GetInput = 90,
  kApiKernelContext_GetOutput = 91,
  kApiReleaseStatus = 93,
  kApiReleaseTensorTypeAndShapeInfo = 99,
  kApiReleaseAllocator = 132,
  kApiKernelContext_ParallelFor = 274,
  kApiKernelInfoGetAllocator = 278,
};

struct OrtCustomOp {
  uint32_t version;
  void*(EK_CALL* CreateKernel)(const OrtCustomOp*, const OrtApi*, const OrtKernelInfo*);
  const char*(EK_CALL* GetName)(const OrtCustomOp*);
  const char*(EK_CALL* GetExecutionProviderType)(const OrtCustomOp*);
  ElementType(EK_CALL* GetInputType)(const OrtCustomOp*, size_t);
  size_t(EK_CALL* GetInputTypeCount)(const OrtCustomOp*);
  ElementType(EK_CALL* GetOutputType)(const OrtCustomOp*, size_t);
  size_t(EK_CALL* GetOutputTypeCount)(const OrtCustomOp*);
  void(EK_CALL* KernelCompute)(void*, OrtKernelContext*);
  void(EK_CALL* KernelDestroy)(void*);
  Characteristic(EK_CALL* GetInputCharacteristic)(const OrtCustomOp*, size_t);
  Characteristic(EK_CALL* GetOutputCharacteristic)(const OrtCustomOp*, size_t);
  int(EK_CALL* GetInputMemoryType)(const OrtCustomOp*, size_t);
  int(EK_CALL* GetVariadicInputMinArity)(const OrtCustomOp*);
  int(EK_CALL* GetVariadicInputHomogeneity)(const OrtCustomOp*);
  int(EK_CALL* GetVariadicOutputMinArity)(const OrtCustomOp*);
  int(EK_CALL* GetVariadicOutputHomogeneity)(const OrtCustomOp*);
  OrtStatus*(EK_CALL* CreateKernelV2)(const OrtCustomOp*, const OrtApi*, const OrtKernelInfo*, void**);
  OrtStatus*(EK_CALL* KernelComputeV2)(void*, OrtKernelContext*);
  OrtStatus*(EK_CALL* InferOutputShapeFn)(const OrtCustomOp*, OrtShapeInferContext*);
  int(EK_CALL* GetStartVersion)(const OrtCustomOp*);
  int(EK_CALL* GetEndVersion)(const OrtCustomOp*);
  size_t(EK_CALL* GetMayInplace)(int**, int**);
  void(EK_CALL* ReleaseMayInplace)(int*, int*);
  size_t(EK_CALL* GetAliasMap)(int**, int**);
  void(EK_CALL* ReleaseAliasMap)(int*, int*);
};

// A typed view of OrtApi; each function is one entry of the table.
class Api {
 public:
  explicit Api(const OrtApi* table) : table_(table) {}

  OrtStatus* error(ErrorCode code, const char* message) const {
    return at<OrtStatus*(EK_CALL*)(int, const char*)>(kApiCreateStatus)(code, message);
  }
  OrtStatus* create_domain(const char* name, OrtCustomOpDomain** out) const {
    return at<OrtStatus*(EK_CALL*)(const char*, OrtCustomOpDomain**)>(kApiCreateCustomOpDomain)(name, out);
  }
  OrtStatus* add_operator(OrtCustomOpDomain* domain, const OrtCustomOp* op) const {
    return at<OrtStatus*(EK_CALL*)(OrtCustomOpDomain*, const OrtCustomOp*)>(kApiCustomOpDomain_Add)(domain, op);
  }
  OrtStatus* add_domain(OrtSessionOptions* options, OrtCustomOpDomain* domain) const {
    return at<OrtStatus*(EK_CALL*)(OrtSessionOptions*, OrtCustomOpDomain*)>(kApiAddCustomOpDomain)(options, domain);
  }
  OrtStatus* data(OrtValue* value, void** out) const {
    return at<OrtStatus*(EK_CALL*)(OrtValue*, void**)>(kApiGetTensorMutableData)(value, out);
  }
  OrtStatus* type_and_shape(const OrtValue* value, OrtTensorTypeAndShapeInfo** out) const {
    return at<OrtStatus*(EK_CALL*)(const OrtValue*, OrtTensorTypeAndShapeInfo**)>(kApiGetTensorTypeAndShape)(value,
                                                                                                             out);
  }
  OrtStatus* element_type(const OrtTensorTypeAndShapeInfo* info, ElementType* out) const {
    return at<OrtStatus*(EK_CALL*)(const OrtTensorTypeAndShapeInfo*, ElementType*)>(kApiGetTensorElementType)(info,
                                                                                                              out);
  }
  OrtStatus* rank(const OrtTensorTypeAndShapeInfo* info, size_t* out) const {
    return at<OrtStatus*(EK_CALL*)(const OrtTensorTypeAndShapeInfo*, size_t*)>(kApiGetDimensionsCount)(info, out);
  }
  OrtStatus* dimensions(const OrtTensorTypeAndShapeInfo* info, int64_t* out, size_t count) const {
    return at<OrtStatus*(EK_CALL*)(const OrtTensorTypeAndShapeInfo*, int64_t*, size_t)>(kApiGetDimensions)(info, out,
                                                                                                           count);
  }
  void release_info(OrtTensorTypeAndShapeInfo* info) const {
    at<void(EK_CALL*)(OrtTensorTypeAndShapeInfo*)>(kApiReleaseTensorTypeAndShapeInfo)(info);
  }
  OrtStatus* allocate(OrtAllocator* allocator, size_t bytes, void** out) const {
    return at<OrtStatus*(EK_CALL*)(OrtAllocator*, size_t, void**)>(kApiAllocatorAlloc)(allocator, bytes, out);
  }
  OrtStatus* free(OrtAllocator* allocator, void* memory) const {
    return at<OrtStatus*(EK_CALL*)(OrtAllocator*, void*)>(kApiAllocatorFree)(allocator, memory);
  }
  OrtStatus* attribute(const OrtKernelInfo* info, const char* name, int64_t* out) const {
    return at<OrtStatus*(EK_CALL*)(const OrtKernelInfo*, const char*, int64_t*)>(kApiKernelInfoGetAttribute_int64)(
        info, name, out);
  }
  OrtStatus* attribute(const OrtKernelInfo* info, const char* name, float* out) const {
    return at<OrtStatus*(EK_CALL*)(const OrtKernelInfo*, const char*, float*)>(kApiKernelInfoGetAttribute_float)(
        info, name, out);
  }
  OrtStatus* input_count(const OrtKernelContext* context, size_t* out) const {
    return at<OrtStatus*(EK_CALL*)(const OrtKernelContext*, size_t*)>(kApiKernelContext_GetInputCount)(context, out);
  }
  OrtStatus* input(const OrtKernelContext* context, size_t index, const OrtValue** out) const {
    return at<OrtStatus*(EK_CALL*)(const OrtKernelContext*, size_t, const OrtValue**)>(kApiKernelContext_GetInput)(
        context, index, out);
  }
  OrtStatus* output(OrtKernelContext* context, size_t index, const int64_t* shape, size_t rank, OrtValue** out) const {
    return at<OrtStatus*(EK_CALL*)(OrtKernelContext*, size_t, const int64_t*, size_t, OrtValue**)>(
        kApiKernelContext_GetOutput)(context, index, shape, rank, out);
  }
  void release_status(OrtStatus* status) const { at<void(EK_CALL*)(OrtStatus*)>(kApiReleaseStatus)(status); }
  void release_allocator(OrtAllocator* allocator) const {
    at<void(EK_CALL*)(OrtAllocator*)>(kApiReleaseAllocator)(allocator);
  }
  OrtStatus* parallel_for(const OrtKernelContext* context, void (*body)(void*, size_t), size_t total, size_t batches,
                          void* data) const {
    return at<OrtStatus*(EK_CALL*)(const OrtKernelContext*, void (*)(void*, size_t), size_t, size_t, void*)>(
        kApiKernelContext_ParallelFor)(context, body, total, batches, data);
  }
  OrtStatus* allocator(const OrtKernelInfo* info, OrtAllocator** out) const {
    return at<OrtStatus*(EK_CALL*)(const OrtKernelInfo*, int, OrtAllocator**)>(kApiKernelInfoGetAllocator)(info, 0,
                                                                                                           out);
  }

 private:
  template <class Function>
  Function at(int index) const {
    return reinterpret_cast<Function>(table_->entries[index]);
  }
  const OrtApi* table_;
};

}  // namespace edgekit
