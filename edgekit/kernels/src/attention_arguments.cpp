#if !defined(__arm__)  // attention.h says why
#include "attention_arguments.h"

#include "tensor.h"

namespace edgekit {
namespace {

constexpr int64_t kMost = int64_t{1} << 20;       // heads, rows, tokens: their products stay below 2^63
constexpr int64_t kMostSlots = int64_t{1} << 30;  // positions of a cache
const char* const kNames[kAttentionInputs] = {
    "query",     "key",       "value",    "past_key", "past_value", "seqlens_k", "total_sequence_length",
    "cos_cache", "sin_cache", "head_sink"};

Message& begin(Message& message) { return message << "CachedAttention: "; }

OrtStatus* wrong_attribute(const Api& api, const char* name, int64_t found, const char* expected) {
  Message message;
  return invalid(api, begin(message) << "attribute " << name << " is " << found << ", " << expected << " expected");
}

template <class Number>
OrtStatus* read_attribute(const Api& api, const OrtKernelInfo* info, const char* name, const char* kind, Number* out) {
  OrtStatus* status = api.attribute(info, name, out);
  if (status == nullptr) return nullptr;
  api.release_status(status);  // it names neither the operator nor the attribute
  Message message;
  begin(message) << "attribute " << name << " is missing or no " << kind;
  return invalid(api, message << "; export the model again");
}

OrtStatus* check(const Api& api, const Tensor* inputs, AttentionInput input, ElementType type) {
  const Tensor& tensor = inputs[input];
  Message message;
  begin(message) << kNames[input];
  if (tensor.value == nullptr) return invalid(api, message << " is missing");
  if (tensor.type == type) return nullptr;
  message << " has element type " << tensor.type << ", " << (type == kFloat ? "float32" : "int32");
  return invalid(api, message << " expected");
}

// An input of exactly these dimensions.
OrtStatus* check_shape(const Api& api, const Tensor* inputs, AttentionInput input, const int64_t* dims, size_t rank,
                       const char* meaning) {
  const Tensor& tensor = inputs[input];
  bool same = tensor.rank == rank;
  for (size_t i = 0; same && i < rank; ++i) same = tensor.dims[i] == dims[i];
  if (same) return nullptr;
  Message message;
  begin(message) << kNames[input] << " is " << tensor << ", [";
  for (size_t i = 0; i < rank; ++i) message << (i ? ", " : "") << dims[i];
  return invalid(api, message << "] expected (" << meaning << ")");
}

OrtStatus* check_query(const Api& api, const Tensor* inputs, const AttentionAttributes& a, AttentionArguments* out) {
  const Tensor& query = inputs[kQuery];
  const bool packed = inputs[kKey].value == nullptr && inputs[kValue].value == nullptr;
  const int64_t heads = packed ? a.heads + 2 * a.groups : a.heads;
  Message message;
  begin(message) << "query is " << query;
  if (query.rank != 3) return invalid(api, message << ", [batch, tokens, heads x head size] expected");
  const int64_t dim = query.dims[2] / heads;
  if (dim < 1 || dim * heads != query.dims[2]) {
    return invalid(api, message << ", its last dimension is no multiple of " << heads << " heads"
                                << (packed ? " (packed: query, key and value)" : ""));
  }
  if (dim % static_cast<int64_t>(kHeadStep) != 0 || dim > static_cast<int64_t>(kMostHead)) {
    return invalid(api, message << ", heads of " << dim << "; a multiple of 8 up to 512 expected");
  }
  if (query.dims[0] < 0 || query.dims[1] < 0 || query.dims[0] >= kMost || query.dims[1] >= kMost) {
    return invalid(api, message << ", fewer than 2^20 rows and tokens expected");
  }
  out->batch = static_cast<size_t>(query.dims[0]);
  out->tokens = static_cast<size_t>(query.dims[1]);
  out->heads = static_cast<size_t>(a.heads);
  out->groups = static_cast<size_t>(a.groups);
  out->dim = static_cast<size_t>(dim);
  const size_t own = out->heads * out->dim, other = out->groups * out->dim;
  out->q_stride = packed ? own + 2 * other : own;
  out->kv_stride = packed ? out->q_stride : other;
  if (packed) return nullptr;
  const int64_t dims[] = {query.dims[0], query.dims[1], a.groups * dim};
  constexpr AttentionInput kBoth[] = {kKey, kValue};
  for (AttentionInput input : kBoth) {
    if (OrtStatus* status = check(api, inputs, input, kFloat)) return status;
    if (OrtStatus* status = check_shape(api, inputs, input, dims, 3, "as query, kv_num_heads heads")) return status;
  }
  return nullptr;
}

OrtStatus* check_caches(const Api& api, const Tensor* inputs, AttentionArguments* out) {
  const Tensor& key = inputs[kPastKey];
  const int64_t slots = key.rank == 4 ? key.dims[2] : -1;
  if (slots >= kMostSlots) {
    Message message;
    return invalid(api, begin(message) << "past_key is " << key << ", fewer than 2^30 positions expected");
  }
  const int64_t dims[] = {static_cast<int64_t>(out->batch), static_cast<int64_t>(out->groups), slots < 0 ? 0 : slots,
                          static_cast<int64_t>(out->dim)};
  constexpr AttentionInput kBoth[] = {kPastKey, kPastValue};
  for (AttentionInput input : kBoth) {
    if (OrtStatus* status = check(api, inputs, input, kFloat)) return status;
    const char* const meaning = "batch, kv_num_heads, positions, head size";
    if (OrtStatus* status = check_shape(api, inputs, input, dims, 4, meaning)) return status;
  }
  out->past_slots = static_cast<size_t>(slots);
  return nullptr;
}

// Where each row's new tokens lie: all of them in the cache.
OrtStatus* check_positions(const Api& api, const Tensor* inputs, AttentionArguments* out, const int32_t** total) {
  constexpr AttentionInput kBoth[] = {kEnds, kTotal};
  for (AttentionInput input : kBoth) {
    if (OrtStatus* status = check(api, inputs, input, kInt32)) return status;
  }
  const Tensor &ends = inputs[kEnds], &length = inputs[kTotal];
  const int64_t dims[] = {static_cast<int64_t>(out->batch), 1};
  const size_t rank = ends.rank == 2 ? 2 : 1;
  if (OrtStatus* status = check_shape(api, inputs, kEnds, dims, rank, "batch")) return status;
  if (length.rank > 1 || (length.rank == 1 && length.dims[0] != 1)) {
    return check_shape(api, inputs, kTotal, dims + 1, 1, "one number");
  }
  const void *first = nullptr, *second = nullptr;
  if (OrtStatus* status = read_data(api, ends, &first)) return status;
  if (OrtStatus* status = read_data(api, length, &second)) return status;
  out->ends = static_cast<const int32_t*>(first);
  *total = static_cast<const int32_t*>(second);
  const int64_t most = **total, least = static_cast<int64_t>(out->tokens);
  Message message;
  begin(message);
  if (most < least || most >= kMostSlots) {
    return invalid(
        api, message << "total_sequence_length is " << most << ", " << least << " (the new tokens) to 2^30 expected");
  }
  for (size_t b = 0; b < out->batch; ++b) {
    const int64_t end = out->ends[b];
    if (end >= least - 1 && end < most) continue;
    message << "seqlens_k of row " << static_cast<int64_t>(b) << " is " << end << ", " << least - 1 << " (of " << least;
    return invalid(api, message << " new tokens the last) to " << most - 1 << " (total_sequence_length) expected");
  }
  out->slots = static_cast<size_t>(most) > out->past_slots ? static_cast<size_t>(most) : out->past_slots;
  return nullptr;
}

OrtStatus* check_rotation(const Api& api, const Tensor* inputs, const AttentionAttributes& a, AttentionArguments* out) {
  out->half = 0;
  if (a.rotary == 0) return nullptr;
  const Tensor& cos = inputs[kCos];
  constexpr AttentionInput kBoth[] = {kCos, kSin};
  for (AttentionInput input : kBoth) {
    if (OrtStatus* status = check(api, inputs, input, kFloat)) return status;
  }
  Message message;
  begin(message) << "cos_cache is " << cos;
  if (cos.rank != 2 || cos.dims[1] < 1 || 2 * cos.dims[1] > static_cast<int64_t>(out->dim)) {
    return invalid(api, message << ", [positions, 1 to " << static_cast<int64_t>(out->dim / 2) << "] expected");
  }
  if (OrtStatus* status = check_shape(api, inputs, kSin, cos.dims, 2, "as cos_cache")) return status;
  for (size_t b = 0; b < out->batch; ++b) {
    if (out->ends[b] < cos.dims[0]) continue;
    return invalid(api, message << ", a token stands at position " << static_cast<int64_t>(out->ends[b]));
  }
  out->half = static_cast<size_t>(cos.dims[1]);
  const void *first = nullptr, *second = nullptr;
  if (OrtStatus* status = read_data(api, cos, &first)) return status;
  if (OrtStatus* status = read_data(api, inputs[kSin], &second)) return status;
  out->cos = static_cast<const float*>(first);
  out->sin = static_cast<const float*>(second);
  return nullptr;
}

OrtStatus* read_floats(const Api& api, const Tensor& tensor, const float** out) {
  const void* data = nullptr;
  OrtStatus* status = read_data(api, tensor, &data);
  *out = static_cast<const float*>(data);
  return status;
}

OrtStatus* read_all(const Api& api, const Tensor* inputs, AttentionArguments* out) {
  if (OrtStatus* status = read_floats(api, inputs[kQuery], &out->q)) return status;
  out->k = out->q + out->heads * out->dim;
  out->v = out->k + out->groups * out->dim;
  if (inputs[kKey].value != nullptr) {
    if (OrtStatus* status = read_floats(api, inputs[kKey], &out->k)) return status;
    if (OrtStatus* status = read_floats(api, inputs[kValue], &out->v)) return status;
  }
  if (OrtStatus* status = read_floats(api, inputs[kPastKey], &out->past_k)) return status;
  if (OrtStatus* status = read_floats(api, inputs[kPastValue], &out->past_v)) return status;
  out->sink = nullptr;
  return inputs[kSink].value == nullptr ? nullptr : read_floats(api, inputs[kSink], &out->sink);
}

OrtStatus* make_output(const Api& api, OrtKernelContext* context, size_t index, const int64_t* shape, size_t rank,
                       float** out) {
  OrtValue* value = nullptr;
  if (OrtStatus* status = api.output(context, index, shape, rank, &value)) return status;
  void* data = nullptr;
  OrtStatus* status = api.data(value, &data);
  *out = static_cast<float*>(data);
  return status;
}

}  // namespace

OrtStatus* read_attributes(const Api& api, const OrtKernelInfo* info, AttentionAttributes* out) {
  struct {
    const char* name;
    int64_t* value;
  } const ints[] = {{"num_heads", &out->heads},
                    {"kv_num_heads", &out->groups},
                    {"local_window_size", &out->window},
                    {"do_rotary", &out->rotary},
                    {"rotary_interleaved", &out->interleaved}};
  for (const auto& one : ints) {
    if (OrtStatus* status = read_attribute(api, info, one.name, "integer", one.value)) return status;
  }
  if (OrtStatus* status = read_attribute(api, info, "scale", "float", &out->scale)) return status;
  if (OrtStatus* status = read_attribute(api, info, "softcap", "float", &out->softcap)) return status;
  if (out->heads < 1 || out->heads >= kMost) return wrong_attribute(api, "num_heads", out->heads, "1 to 2^20");
  if (out->groups < 1 || out->groups > out->heads) {
    return wrong_attribute(api, "kv_num_heads", out->groups, "1 to num_heads");
  }
  const int32_t heads = static_cast<int32_t>(out->heads), groups = static_cast<int32_t>(out->groups);
  if (heads % groups != 0) return wrong_attribute(api, "kv_num_heads", out->groups, "a divisor of num_heads");
  if (out->window != -1 && (out->window < 1 || out->window >= kMostSlots)) {
    return wrong_attribute(api, "local_window_size", out->window, "-1 (no window) or 1 to 2^30");
  }
  if (out->rotary != 0 && out->rotary != 1) return wrong_attribute(api, "do_rotary", out->rotary, "0 or 1");
  if (out->interleaved != 0 && out->interleaved != 1) {
    return wrong_attribute(api, "rotary_interleaved", out->interleaved, "0 or 1");
  }
  Message message;
  if (!(out->scale > 0 && out->scale < 1e30f)) {
    return invalid(api, begin(message) << "attribute scale is not above 0 and below 1e30");
  }
  if (!(out->softcap >= 0 && out->softcap < 1e30f)) {
    return invalid(api, begin(message) << "attribute softcap is not 0 (none) or above, and below 1e30");
  }
  return nullptr;
}

OrtStatus* read_arguments(const Api& api, OrtKernelContext* context, const AttentionAttributes& a,
                          AttentionArguments* out) {
  size_t count = 0;
  if (OrtStatus* status = api.input_count(context, &count)) return status;
  Tensor inputs[kAttentionInputs];
  for (size_t i = 0; i < kAttentionInputs && i < count; ++i) {
    if (OrtStatus* status = read_tensor(api, context, i, &inputs[i])) return status;
  }
  const int32_t* total = nullptr;
  if (OrtStatus* status = check(api, inputs, kQuery, kFloat)) return status;
  if (OrtStatus* status = check_query(api, inputs, a, out)) return status;
  if (OrtStatus* status = check_caches(api, inputs, out)) return status;
  if (OrtStatus* status = check_positions(api, inputs, out, &total)) return status;
  if (OrtStatus* status = check_rotation(api, inputs, a, out)) return status;
  if (inputs[kSink].value != nullptr) {
    if (OrtStatus* status = check(api, inputs, kSink, kFloat)) return status;
    if (OrtStatus* status = check_shape(api, inputs, kSink, &a.heads, 1, "num_heads")) return status;
  }
  if (OrtStatus* status = read_all(api, inputs, out)) return status;
  const int64_t cache[] = {static_cast<int64_t>(out->batch), a.groups, static_cast<int64_t>(out->slots),
                           static_cast<int64_t>(out->dim)};
  const int64_t answer[] = {cache[0], static_cast<int64_t>(out->tokens), a.heads * cache[3]};
  if (OrtStatus* status = make_output(api, context, 0, answer, 3, &out->y)) return status;
  if (OrtStatus* status = make_output(api, context, 1, cache, 4, &out->present_k)) return status;
  return make_output(api, context, 2, cache, 4, &out->present_v);
}

}  // namespace edgekit
#endif
