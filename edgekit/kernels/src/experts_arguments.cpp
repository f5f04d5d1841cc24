#include "arguments.h"
#include "experts.h"
#include "tensor.h"

namespace edgekit {
namespace {

constexpr const char* kNames[kExpertInputs] = {"X", "index", "W", "scales"};

OrtStatus* read_attribute(const Api& api, const OrtKernelInfo* info, const char* name, int64_t* out) {
  OrtStatus* status = api.attribute(info, name, out);
  if (status == nullptr) return nullptr;
  api.release_status(status);  // it names neither the operator nor the attribute
  Message message;
  message << "ExpertMatMul: attribute " << name;
  return invalid(api, message << " is missing or no integer; export the model again");
}

// The inputs are there and of the right types.
OrtStatus* check_types(const Api& api, const Tensor* inputs) {
  constexpr ElementType kTypes[kExpertInputs] = {kFloat, kInt64, kUint8, kFloat};
  constexpr const char* kTypeNames[kExpertInputs] = {"float32", "int64", "uint8", "float32"};
  for (int i = 0; i < kExpertInputs; ++i) {
    Message message;
    message << "ExpertMatMul: " << kNames[i];
    if (inputs[i].value == nullptr)
      return invalid(api, message << (i == kExpertScales ? " are missing" : " is missing"));
    if (inputs[i].type == kTypes[i]) continue;
    return invalid(api, message << (i == kExpertScales ? " have" : " has") << " element type " << inputs[i].type << ", "
                                << kTypeNames[i] << " expected");
  }
  return nullptr;
}

// Which rows go to experts: index [tokens, experts of each], X [tokens, K] or [tokens, experts of each, K].
OrtStatus* check_pairs(const Api& api, const Tensor& x, const Tensor& index, int64_t k, ExpertArguments* out) {
  Message message;
  message << "ExpertMatMul: ";
  if (index.rank != 2) return invalid(api, message << "index is " << index << ", [tokens, experts of each] expected");
  const int64_t tokens = index.dims[0], each = index.dims[1];
  if (tokens < 0 || each < 0 || tokens >= kMostRows || each >= kMostRows || tokens * each >= kMostRows) {
    return invalid(api, message << "index is " << index << ", fewer than 2^31 pairs expected");
  }
  const bool by_token = x.rank == 2 && x.dims[0] == tokens && x.dims[1] == k;
  const bool by_pair = x.rank == 3 && x.dims[0] == tokens && x.dims[1] == each && x.dims[2] == k;
  if (!by_token && !by_pair) {
    message << "X is " << x << ", [" << tokens << ", " << k << "] or [" << tokens << ", " << each << ", " << k;
    return invalid(api, message << "] expected (index, K)");
  }
  out->pairs = static_cast<size_t>(tokens * each);
  out->rows = by_token ? static_cast<size_t>(tokens) : out->pairs;
  out->each = by_token ? static_cast<size_t>(each) : 1;
  return nullptr;
}

OrtStatus* check_weights(const Api& api, const Tensor& w, const Tensor& scales, const ExpertArguments& a,
                         Format format) {
  const int64_t n = static_cast<int64_t>(a.n), blocks = static_cast<int64_t>(a.blocks);
  const int64_t bytes = static_cast<int64_t>(code_bytes(format, a.block));
  Message message;
  message << "ExpertMatMul: ";
  if (w.rank != 4 || w.dims[0] < 0 || w.dims[1] != n || w.dims[2] != blocks || w.dims[3] != bytes) {
    message << "W is " << w << ", [experts, " << n << ", " << blocks << ", " << bytes;
    return invalid(api, message << "] expected (experts, N, K/block_size, bytes of a block)");
  }
  if (scales.rank == 3 && scales.dims[0] == w.dims[0] && scales.dims[1] == n && scales.dims[2] == blocks)
    return nullptr;
  message << "scales are " << scales << ", [" << w.dims[0] << ", " << n << ", " << blocks;
  return invalid(api, message << "] expected (experts, N, K/block_size)");
}

OrtStatus* read_all(const Api& api, const Tensor* inputs, ExpertArguments* out) {
  const void* data[kExpertInputs];
  for (int i = 0; i < kExpertInputs; ++i) {
    if (OrtStatus* status = read_data(api, inputs[i], &data[i])) return status;
  }
  out->x = static_cast<const float*>(data[kExpertX]);
  out->index = static_cast<const int64_t*>(data[kExpertIndex]);
  out->w = static_cast<const uint8_t*>(data[kExpertW]);
  out->scales = static_cast<const float*>(data[kExpertScales]);
  return nullptr;
}

}  // namespace

OrtStatus* read_attributes(const Api& api, const OrtKernelInfo* info, ExpertAttributes* out) {
  int64_t bits = 0, block = 0;
  if (OrtStatus* status = read_attribute(api, info, "K", &out->k)) return status;
  if (OrtStatus* status = read_attribute(api, info, "N", &out->n)) return status;
  if (OrtStatus* status = read_attribute(api, info, "bits", &bits)) return status;
  if (OrtStatus* status = read_attribute(api, info, "block_size", &block)) return status;
  Message message;
  message << "ExpertMatMul: attribute ";
  if (bits != 2 && bits != 4 && bits != 8) return invalid(api, message << "bits is " << bits << ", 2, 4 or 8 expected");
  out->format = bits == 2 ? kTernary : bits == 4 ? kInt4 : kInt8Blocks;
  if (block < 16 || block > static_cast<int64_t>(kMostBlock) || (block & (block - 1)) != 0) {
    return invalid(api, message << "block_size is " << block << ", 16, 32, 64, 128 or 256 expected");
  }
  if (bits == 2 && block != static_cast<int64_t>(kBlock)) {
    return invalid(api, message << "block_size is " << block << ", 128 expected with 2 bits");
  }
  if (out->k < 1 || out->k > kMostInt8K || (out->k & (block - 1)) != 0) {
    return invalid(api, message << "K is " << out->k << ", a multiple of " << block << " up to 131072 expected");
  }
  if (out->n < 1 || out->n >= kMostRows) {
    return invalid(api, message << "N is " << out->n << ", 1 to 2^31 - 1 expected");
  }
  out->block = static_cast<size_t>(block);
  return nullptr;
}

OrtStatus* read_arguments(const Api& api, OrtKernelContext* context, const ExpertAttributes& attributes,
                          ExpertArguments* out) {
  size_t count = 0;
  if (OrtStatus* status = api.input_count(context, &count)) return status;
  Tensor inputs[kExpertInputs];
  for (size_t i = 0; i < kExpertInputs && i < count; ++i) {
    if (OrtStatus* status = read_tensor(api, context, i, &inputs[i])) return status;
  }
  if (OrtStatus* status = check_types(api, inputs)) return status;
  const Tensor& index = inputs[kExpertIndex];
  if (OrtStatus* status = check_pairs(api, inputs[kExpertX], index, attributes.k, out)) return status;
  out->n = static_cast<size_t>(attributes.n);
  out->k = static_cast<size_t>(attributes.k);
  out->block = attributes.block;
  out->blocks = parts(out->k, out->block);
  out->row_bytes = out->blocks * code_bytes(attributes.format, out->block);
  const Tensor& w = inputs[kExpertW];
  if (OrtStatus* status = check_weights(api, w, inputs[kExpertScales], *out, attributes.format)) return status;
  out->experts = static_cast<size_t>(w.dims[0]);
  if (OrtStatus* status = read_all(api, inputs, out)) return status;
  const int64_t shape[] = {index.dims[0], index.dims[1], attributes.n};
  OrtValue* value = nullptr;
  if (OrtStatus* status = api.output(context, 0, shape, 3, &value)) return status;
  void* y = nullptr;
  OrtStatus* status = api.data(value, &y);
  out->y = static_cast<float*>(y);
  return status;
}

}  // namespace edgekit
