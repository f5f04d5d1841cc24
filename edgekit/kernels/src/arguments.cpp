// All validation of what a model or a caller may give: nothing past this file checks shapes again.
#include "arguments.h"

#include "tensor.h"

namespace edgekit {
namespace {

OrtStatus* check_x(const Api& api, const Tensor& x, const Attributes& a, size_t* m) {
  Message message;
  message << operator_name(a.format) << ": X ";
  if (x.value == nullptr) return invalid(api, message << "is missing");
  if (x.rank == 0 || x.rank > kMostDimensions) {
    return invalid(api, message << "has " << static_cast<int64_t>(x.rank) << " dimensions, 1 to 16 expected");
  }
  if (x.type != (a.half ? kFloat16 : kFloat)) {
    return invalid(api,
                   message << "has element type " << x.type << ", " << (a.half ? "float16" : "float32") << " expected");
  }
  if (x.dims[x.rank - 1] != a.k) {
    return invalid(api,
                   message << x << " has " << x.dims[x.rank - 1] << " columns, " << a.k << " expected (attribute K)");
  }
  int64_t rows = 1;
  for (size_t i = 0; i + 1 < x.rank; ++i) {
    if (x.dims[i] < 0 || x.dims[i] >= kMostRows)
      return invalid(api, message << x << " is too large: fewer than 2^31 rows");
    rows *= x.dims[i];  // both below 2^31
    if (rows >= kMostRows) return invalid(api, message << x << " is too large: fewer than 2^31 rows");
  }
  *m = static_cast<size_t>(rows);
  return nullptr;
}

OrtStatus* check_w(const Api& api, const Tensor& w, const Attributes& a, size_t blocks) {
  const int64_t bytes =
      static_cast<int64_t>(in_blocks(a.format) ? code_bytes(a.format, a.block) : block_bytes(a.format));
  Message message;
  message << operator_name(a.format) << ": W ";
  if (w.value == nullptr) return invalid(api, message << "is missing");
  if (w.type != kUint8) return invalid(api, message << "has element type " << w.type << ", uint8 expected");
  if (w.rank == 3 && w.dims[0] == a.n && w.dims[1] == static_cast<int64_t>(blocks) && w.dims[2] == bytes)
    return nullptr;
  message << "is " << w << ", [" << a.n << ", " << static_cast<int64_t>(blocks) << ", " << bytes << "] expected";
  message << " (N, K/" << static_cast<int64_t>(a.block);
  return invalid(api, message << " rounded up, bytes of a block)");
}

// A sparse W is one run of bytes; what is in it is looked at by those who read it.
OrtStatus* check_sparse_w(const Api& api, const Tensor& w, const Attributes& a, size_t blocks, size_t* bytes) {
  Message message;
  message << operator_name(a.format) << ": W ";
  if (w.value == nullptr) return invalid(api, message << "is missing");
  if (w.type != kUint8) return invalid(api, message << "has element type " << w.type << ", uint8 expected");
  if (w.rank != 1) return invalid(api, message << "is " << w << ", one dimension expected (bytes)");
  const uint64_t n = static_cast<uint64_t>(a.n);
  const uint64_t least = 4 * (n + 1) + n * blocks * kMaskBytes + kSparseTail, most = uint64_t{1} << 32;
  if (w.dims[0] < 0 || static_cast<uint64_t>(w.dims[0]) < least || static_cast<uint64_t>(w.dims[0]) >= most) {
    message << "has " << w.dims[0] << " bytes, at least " << static_cast<int64_t>(least) << " expected for " << a.n;
    return invalid(api, message << " rows of " << a.k << ", and fewer than 2^32");
  }
  *bytes = static_cast<size_t>(w.dims[0]);
  return nullptr;
}

// Rows begin behind their places and end before the bytes that may be read too many.
OrtStatus* check_sparse_ends(const Api& api, const Attributes& a, const Arguments& out) {
  uint32_t first, end;
  __builtin_memcpy(&first, out.w, sizeof first);
  __builtin_memcpy(&end, out.w + out.n * sizeof end, sizeof end);
  const size_t begin = sparse_header(out.n), stop = out.w_bytes - kSparseTail;
  if (first == begin && end == stop) return nullptr;
  Message message;
  message << operator_name(a.format) << ": W says that its rows are bytes " << int64_t{first} << " to " << int64_t{end};
  return invalid(api, message << ", " << static_cast<int64_t>(begin) << " to " << static_cast<int64_t>(stop)
                              << " expected; the file is damaged, export or copy it again");
}

OrtStatus* check_scales(const Api& api, const Tensor& s, const Attributes& a, Arguments* out) {
  Message message;
  message << operator_name(a.format) << ": scales ";
  if (s.value == nullptr) return invalid(api, message << "are missing");
  if (s.type != kFloat && !(s.type == kFloat16 && a.format == kInt4)) {
    message << "have element type " << s.type << ", float32" << (a.format == kInt4 ? " or float16" : "");
    return invalid(api, message << " expected");
  }
  const bool by_row = !in_blocks(a.format), by_block = a.format == kTernary || in_blocks(a.format);
  out->one_scale = by_row && s.rank == 1 && s.dims[0] == 1;
  out->scales_each = by_block && s.rank == 2 && s.dims[0] == a.n && s.dims[1] == static_cast<int64_t>(out->blocks);
  if (out->one_scale || out->scales_each || (by_row && s.rank == 1 && s.dims[0] == a.n)) return nullptr;
  message << "are " << s << ", ";
  if (by_row) message << "[1], [" << a.n << "]" << (by_block ? " or " : "");
  if (by_block) message << "[" << a.n << ", " << static_cast<int64_t>(out->blocks) << "]";
  return invalid(api, message << " expected");
}

OrtStatus* check_bias(const Api& api, const Tensor& b, const Attributes& a) {
  Message message;
  message << operator_name(a.format) << ": bias ";
  if (b.value == nullptr) return nullptr;
  if (b.type != kFloat) return invalid(api, message << "has element type " << b.type << ", float32 expected");
  if (b.rank == 1 && b.dims[0] == a.n) return nullptr;
  return invalid(api, message << "is " << b << ", [" << a.n << "] expected");
}

OrtStatus* make_output(const Api& api, OrtKernelContext* context, const Tensor& x, const Attributes& a, void** out) {
  int64_t shape[kMostDimensions];
  for (size_t i = 0; i < x.rank; ++i) shape[i] = x.dims[i];
  shape[x.rank - 1] = a.n;
  OrtValue* value = nullptr;
  if (OrtStatus* status = api.output(context, 0, shape, x.rank, &value)) return status;
  return api.data(value, out);
}

OrtStatus* read_attribute(const Api& api, const OrtKernelInfo* info, Format format, const char* name, int64_t* out) {
  OrtStatus* status = api.attribute(info, name, out);
  if (status == nullptr) return nullptr;
  api.release_status(status);  // it names neither the operator nor the attribute
  Message message;
  message << operator_name(format) << ": attribute " << name;
  return invalid(api, message << " is missing or no integer; export the model again");
}

}  // namespace

const char* operator_name(Format format) {
  if (in_blocks(format)) return format == kInt4 ? "Int4MatMul" : "Int8BlockMatMul";
  return format == kTernary ? "TernaryMatMul" : format == kInt8 ? "Int8MatMul" : "SparseMatMul";
}

OrtStatus* read_attributes(const Api& api, const OrtKernelInfo* info, Format format, bool half, Attributes* out) {
  out->format = format;
  out->half = half;
  if (OrtStatus* status = read_attribute(api, info, format, "K", &out->k)) return status;
  if (OrtStatus* status = read_attribute(api, info, format, "N", &out->n)) return status;
  int64_t rounding = 0;
  if (OrtStatus* status = read_attribute(api, info, format, "activation_block_size", &rounding)) return status;
  int64_t bits = 8, block = kBlock;
  if (is_sparse(format)) {
    if (OrtStatus* status = read_attribute(api, info, format, "bits", &bits)) return status;
    out->format = bits == 4 ? kSparse4 : kSparse8;
  } else if (in_blocks(format)) {
    if (OrtStatus* status = read_attribute(api, info, format, "block_size", &block)) return status;
  }
  out->block = static_cast<size_t>(block);
  out->each_block = rounding != 0;
  const int64_t most = format == kTernary ? kMostTernaryK : kMostInt8K;
  Message message;
  message << operator_name(format) << ": ";
  if (out->k < 1 || out->k > most) {
    return invalid(api, message << "attribute K is " << out->k << ", 1 to " << most << " expected");
  }
  if (out->n < 1 || out->n >= kMostRows) {
    return invalid(api, message << "attribute N is " << out->n << ", 1 to 2^31 - 1 expected");
  }
  if (block < 16 || block > static_cast<int64_t>(kMostBlock) || (block & (block - 1)) != 0) {
    return invalid(api, message << "attribute block_size is " << block << ", 16, 32, 64, 128 or 256 expected");
  }
  if (rounding != 0 && rounding != block) {
    message << "attribute activation_block_size is " << rounding << ", 0 (per token) or " << block;
    return invalid(api, message << " expected");
  }
  if (bits != 4 && bits != 8) return invalid(api, message << "attribute bits is " << bits << ", 4 or 8 expected");
  return nullptr;
}

OrtStatus* read_arguments(const Api& api, OrtKernelContext* context, const Attributes& a, Arguments* out) {
  size_t count = 0;
  if (OrtStatus* status = api.input_count(context, &count)) return status;
  Tensor x, w, scales, bias;
  Tensor* all[] = {&x, &w, &scales, &bias};
  for (size_t i = 0; i < 4 && i < count; ++i) {
    if (OrtStatus* status = read_tensor(api, context, i, all[i])) return status;
  }
  out->n = static_cast<size_t>(a.n);
  out->k = static_cast<size_t>(a.k);
  out->block = a.block;
  out->blocks = parts(out->k, a.block);
  out->half = a.half;
  out->steps_each = a.each_block;
  if (OrtStatus* status = check_x(api, x, a, &out->m)) return status;
  out->row_bytes = out->blocks * (in_blocks(a.format) ? code_bytes(a.format, a.block) : block_bytes(a.format));
  out->w_bytes = out->n * out->row_bytes;
  OrtStatus* const wrong =
      is_sparse(a.format) ? check_sparse_w(api, w, a, out->blocks, &out->w_bytes) : check_w(api, w, a, out->blocks);
  if (wrong != nullptr) return wrong;
  if (OrtStatus* status = check_scales(api, scales, a, out)) return status;
  if (OrtStatus* status = check_bias(api, bias, a)) return status;
  out->each = out->steps_each || out->scales_each;
  const void *w_data = nullptr, *scale_data = nullptr, *bias_data = nullptr;
  if (OrtStatus* status = read_data(api, x, &out->x)) return status;
  if (OrtStatus* status = read_data(api, w, &w_data)) return status;
  if (OrtStatus* status = read_data(api, scales, &scale_data)) return status;
  if (bias.value != nullptr) {
    if (OrtStatus* status = read_data(api, bias, &bias_data)) return status;
  }
  out->w = static_cast<const uint8_t*>(w_data);
  out->scales = scales.type == kFloat ? static_cast<const float*>(scale_data) : nullptr;
  out->half_scales = scales.type == kFloat16 ? static_cast<const uint16_t*>(scale_data) : nullptr;
  out->bias = static_cast<const float*>(bias_data);
  if (is_sparse(a.format)) {
    if (OrtStatus* status = check_sparse_ends(api, a, *out)) return status;
  }
  return make_output(api, context, x, a, &out->y);
}

}  // namespace edgekit
