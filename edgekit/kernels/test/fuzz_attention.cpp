// libFuzzer on what a model or a caller can hand to CachedAttention. Whatever the bytes say, the outcome is an error
// with a message or, where all numbers are finite, the very bits that the scalar kernels give, in new caches as in
// place; and nothing is left over, also when any call of ONNX Runtime fails.
#include "attention_arguments.h"
#include "fuzz_source.h"

using namespace edgekit;

namespace {

struct Drawn {
  int64_t batch, tokens, heads, groups, dim, past, slots;
  bool packed, turned, sink;
};

Drawn draw(Source& source) {
  Drawn drawn{};
  drawn.batch = source.byte() % 3 ? 1 : source.byte() % 4;
  drawn.groups = 1 + source.byte() % 3;
  drawn.heads = drawn.groups * (1 + source.byte() % 4);
  drawn.dim = 8 * (1 + source.byte() % 4);
  drawn.tokens = source.byte() % 3 ? source.byte() % 4 : source.byte() % 30;
  drawn.past = source.byte() % 140;
  drawn.slots = source.byte() % 2 ? drawn.past : drawn.past + drawn.tokens + source.byte() % 4;
  drawn.packed = source.byte() % 2, drawn.turned = source.byte() % 2, drawn.sink = source.byte() % 3 == 0;
  return drawn;
}

// As drawn, and now and then one of them another number.
OrtKernelInfo attributes_of(Source& source, const Drawn& drawn) {
  const uint8_t window = source.byte(), softcap = source.byte(), oddity = source.byte();
  OrtKernelInfo info{};
  info.attention = {{"num_heads", drawn.heads},
                    {"kv_num_heads", drawn.groups},
                    {"local_window_size", window % 3 ? -1 : 1 + window},
                    {"do_rotary", drawn.turned},
                    {"rotary_interleaved", softcap / 4 % 2},
                    {"scale", 0.25},
                    {"softcap", softcap % 3 ? 0 : 0.5 + softcap}};
  if (oddity > 240) std::next(info.attention.begin(), oddity % 7)->second = static_cast<double>(source.number() >> 11);
  if (oddity == 240) info.attention.erase("scale");
  return info;
}

// Floats between -4 and 4, or any bits; whether all are finite and of a size that products stay finite.
bool fill(Source& source, OrtValue* value, bool wild) {
  size_t count = value->info.type == kFloat ? 1 : 0;
  for (int64_t d : value->info.dims) count *= static_cast<size_t>(d);
  uint32_t state = source.byte();
  for (size_t i = 0; i < count; ++i) {
    state = state * 1664525 + 1013904223;
    float x = static_cast<float>(state >> 8) / 2097152.0f - 4.0f;
    if (wild) std::memcpy(&x, &state, 4);
    std::memcpy(static_cast<float*>(value->data) + i, &x, 4);
  }
  return !wild;
}

void place(Source& source, const Drawn& drawn, OrtValue* ends, OrtValue* total) {
  const int64_t last = drawn.past + drawn.tokens - 1;
  for (OrtValue* value : {ends, total}) {
    size_t count = value->info.type == kInt32 ? 1 : 0;
    for (int64_t d : value->info.dims) count *= static_cast<size_t>(d);
    for (size_t i = 0; i < count; ++i) {
      const uint8_t oddity = source.byte();
      int64_t number = value == total ? last + 1 : i > 0 && last > drawn.tokens ? drawn.tokens : last;
      if (oddity > 245) number = source.number();
      const int32_t narrow = static_cast<int32_t>(number);
      std::memcpy(static_cast<int32_t*>(value->data) + i, &narrow, 4);
    }
  }
}

struct Outcome {
  std::string message;
  std::vector<uint8_t> output, caches;  // of the caches what the call defines in place, too
};

std::vector<uint8_t> bytes_of(const OrtValue& value) {
  size_t bytes = 4;
  for (int64_t d : value.info.dims) bytes *= static_cast<size_t>(d);
  const uint8_t* first = static_cast<const uint8_t*>(value.data);
  return first == nullptr ? std::vector<uint8_t>{} : std::vector<uint8_t>(first, first + bytes);
}

Outcome attend(const char* isa, const OrtKernelInfo& info, const std::vector<OrtValue*>& inputs, int fail_at) {
  OrtKernelContext context{inputs, {}};
  fake::calls = 0, fake::fail_at = fail_at;
  Outcome outcome{fake::run(operators(isa).ops.back(), info, context), {}, {}};
  fake::fail_at = -1;
  if (outcome.message.empty()) outcome.output = bytes_of(context.output);
  for (OrtValue& cache : context.caches) {
    const std::vector<uint8_t> bytes = bytes_of(cache);
    if (outcome.message.empty()) outcome.caches.insert(outcome.caches.end(), bytes.begin(), bytes.end());
    std::free(cache.data);
  }
  std::free(context.output.data);
  return outcome;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size) {
  Source source{bytes, size};
  const Drawn d = draw(source);
  const OrtKernelInfo info = attributes_of(source, d);
  const uint8_t choice = source.byte();
  const int64_t width = d.packed ? d.heads + 2 * d.groups : d.heads, total = d.past + d.tokens;
  OrtValue values[kAttentionInputs] = {tensor(source, kFloat, {d.batch, d.tokens, width * d.dim}),
                                       tensor(source, kFloat, {d.batch, d.tokens, d.groups * d.dim}),
                                       tensor(source, kFloat, {d.batch, d.tokens, d.groups * d.dim}),
                                       tensor(source, kFloat, {d.batch, d.groups, d.slots, d.dim}),
                                       tensor(source, kFloat, {d.batch, d.groups, d.slots, d.dim}),
                                       tensor(source, kInt32, {d.batch}),
                                       tensor(source, kInt32, {1}),
                                       tensor(source, kFloat, {total, d.dim / (choice & 1 ? 2 : 8)}),
                                       tensor(source, kFloat, {total, d.dim / (choice & 1 ? 2 : 8)}),
                                       tensor(source, kFloat, {d.heads})};
  if (std::all_of(std::begin(values), std::end(values), is_whole)) {
    bool finite = true;
    std::vector<OrtValue*> inputs;
    for (OrtValue& value : values) finite &= fill(source, &value, source.byte() > 250), inputs.push_back(&value);
    place(source, d, &values[kEnds], &values[kTotal]);
    if (d.packed) inputs[kKey] = inputs[kValue] = nullptr;
    if (!d.turned) inputs[kCos] = inputs[kSin] = nullptr;
    if (!d.sink) inputs.pop_back();
    if (choice > 250) inputs[source.byte() % inputs.size()] = nullptr;
    if (choice == 250) inputs.resize(source.byte() % 10);
    const int fail_at = choice > 200 ? source.byte() % 80 : -1;
    const Outcome best = attend("", info, inputs, fail_at), scalar = attend("scalar", info, inputs, fail_at);
    const bool equal = same<uint32_t>(best.output, scalar.output, 0x7F800000) && best.caches == scalar.caches;
    if (fail_at < 0 && (best.message != scalar.message || (finite && !equal))) {
      std::fprintf(stderr, "differs from scalar: '%s', '%s'\n", best.message.c_str(), scalar.message.c_str());
      std::abort();
    }
  }
  for (OrtValue& value : values) std::free(value.data);
  nothing_is_held();
  return 0;
}
