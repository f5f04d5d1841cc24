// An input of an operator as ONNX Runtime describes it, and how messages name it.
#pragma once
#include "message.h"
#include "ort_abi.h"

namespace edgekit {

constexpr size_t kMostDimensions = 16;

struct Tensor {
  const OrtValue* value = nullptr;
  ElementType type = kUndefined;
  size_t rank = 0;
  int64_t dims[kMostDimensions] = {};
};

inline OrtStatus* invalid(const Api& api, const Message& message) {
  return api.error(kInvalidArgument, message.text());
}

inline Message& operator<<(Message& message, const Tensor& tensor) {
  message << "[";
  for (size_t i = 0; i < tensor.rank && i < kMostDimensions; ++i) message << (i ? ", " : "") << tensor.dims[i];
  return message << "]";
}

inline OrtStatus* describe(const Api& api, const OrtTensorTypeAndShapeInfo* info, Tensor* out) {
  if (OrtStatus* status = api.element_type(info, &out->type)) return status;
  if (OrtStatus* status = api.rank(info, &out->rank)) return status;
  if (out->rank > kMostDimensions) return nullptr;
  return api.dimensions(info, out->dims, out->rank);
}

// An input that is left out has no value.
inline OrtStatus* read_tensor(const Api& api, const OrtKernelContext* context, size_t index, Tensor* out) {
  if (OrtStatus* status = api.input(context, index, &out->value)) return status;
  if (out->value == nullptr) return nullptr;
  OrtTensorTypeAndShapeInfo* info = nullptr;
  if (OrtStatus* status = api.type_and_shape(out->value, &info)) return status;
  OrtStatus* status = describe(api, info, out);
  api.release_info(info);
  return status;
}

inline OrtStatus* read_data(const Api& api, const Tensor& tensor, const void** out) {
  void* data = nullptr;
  // ONNX Runtime's only accessor of data in this API version; nothing is written through it.
  OrtStatus* status = api.data(const_cast<OrtValue*>(tensor.value), &data);
  *out = data;
  return status;
}

}  // namespace edgekit
