// One call of an operator on fake_ort.h, as ONNX Runtime makes it, and what is counted on the way.
#pragma once
#include <memory>
#include <thread>

#include "fake_ort.h"
#include "golden.h"
#include "processor.h"

extern "C" edgekit::OrtStatus* RegisterCustomOps(edgekit::OrtSessionOptions* options, const edgekit::OrtApiBase* base);

namespace edgekit {
namespace {

constexpr size_t kMostOutput = 1 << 20;  // bytes; an output of a larger shape is claimed, not allocated
int checks = 0, failures = 0;

void check(bool ok, const std::string& what) {
  ++checks;
  if (!ok && ++failures <= 20) std::printf("FAILED: %s\n", what.c_str());
}

void same(const std::string& found, const std::string& expected, const std::string& where) {
  check(found == expected, where + ":\n  found    " + found + "\n  expected " + expected);
}

size_t element_bytes(ElementType type) {
  return type == kInt64 ? 8 : type == kFloat || type == kInt32 ? 4 : type == kFloat16 ? 2 : 1;
}

// What the fake does otherwise than fake_ort.h: exact outputs, threads, and a failing AllocatorFree.
namespace here {

bool threads = false, free_fails = false, old_runtime = false;
std::vector<std::unique_ptr<OrtCustomOpDomain>> domains;  // the library never gives one back

OrtStatus* create_domain(const char* name, OrtCustomOpDomain** out) {
  OrtStatus* status = fake::create_domain(name, out);
  if (status == nullptr) domains.emplace_back(*out);
  same(name, "ai.edgekit", "the domain's name");
  return status;
}

OrtStatus* output(OrtKernelContext* context, size_t index, const int64_t* shape, size_t rank, OrtValue** out) {
  if (OrtStatus* status = fake::outcome()) return status;
  OrtValue& value = context->output_at(index);
  value.info.dims.assign(shape, shape + rank);
  size_t bytes = element_bytes(value.info.type);
  for (int64_t d : value.info.dims) {
    bytes = d > 0 && bytes > kMostOutput / static_cast<size_t>(d) ? 0 : bytes * static_cast<size_t>(d);
  }
  if (value.data == nullptr) value.data = std::malloc(bytes);  // exactly: what is written beyond it is found
  *out = &value;
  return nullptr;
}

OrtStatus* deallocate(OrtAllocator*, void* memory) {
  --fake::held, std::free(memory);
  return free_fails ? fake::create_status(kFail, "AllocatorFree failed") : nullptr;
}

// As ONNX Runtime does it: each batch is a range of neighbours, on a thread of its own.
OrtStatus* parallel_for(const OrtKernelContext* context, void (*body)(void*, size_t), size_t total, size_t batches,
                        void* data) {
  if (!threads) return fake::parallel_for(context, body, total, batches, data);
  std::vector<std::thread> running;
  for (size_t b = 0; b < batches; ++b) {
    running.emplace_back([=] {
      for (size_t i = b * total / batches; i < (b + 1) * total / batches; ++i) body(data, i);
    });
  }
  for (std::thread& thread : running) thread.join();
  return fake::outcome();
}

const OrtApi* api(uint32_t version) {
  if (old_runtime) return nullptr;
  static void* table[kApiKernelInfoGetAllocator + 1];
  const OrtApi* usual = fake::api(version);
  if (usual == nullptr) return nullptr;
  std::memcpy(table, usual, sizeof table);
  fake::set(table, kApiCreateCustomOpDomain, create_domain);
  fake::set(table, kApiKernelContext_GetOutput, output);
  fake::set(table, kApiAllocatorFree, deallocate);
  fake::set(table, kApiKernelContext_ParallelFor, parallel_for);
  return reinterpret_cast<const OrtApi*>(table);
}

const OrtApiBase kBase{[](uint32_t version) { return api(version); }, [] { return "1.18.0"; }};

}  // namespace here

// An input: what it claims to be, and its bytes.
struct Input {
  ElementType type;
  std::vector<int64_t> dims;
  std::vector<uint8_t> bytes;
  bool present = true;
};

// In the order in which they are registered, products for float32 and for float16.
enum Op { kTernaryOp, kInt8Op, kSparseOp, kInt4Op, kInt8BlockOp, kExpertOp, kAttentionOp };

struct Setup {
  Op op;
  bool half;
  OrtKernelInfo info;
  std::vector<Input> inputs;  // X, W, scales, bias, or ExpertMatMul's or CachedAttention's
  bool in_place = false;      // CachedAttention: past and present are one
};

enum Position { kX, kW, kScales, kBias };

const OrtCustomOpDomain& operators() {
  static OrtSessionOptions options;
  if (options.domain == nullptr) check(RegisterCustomOps(&options, &here::kBase) == nullptr, "registration");
  return *options.domain;
}

size_t bytes_of(const OrtValue& value) {
  size_t bytes = element_bytes(value.info.type);
  for (int64_t d : value.info.dims) bytes *= static_cast<size_t>(d);
  return bytes;
}

// Outputs begin without memory, or caches where the past is.
void begin_outputs(const Setup& setup, const std::vector<OrtValue>& values, size_t count, OrtKernelContext* context) {
  for (size_t i = 0; i < count; ++i) {
    context->output_at(i).data = setup.in_place && i > 0 ? values[2 + i].data : nullptr;
  }
}

void free_outputs(const Setup& setup, size_t count, OrtKernelContext* context) {
  for (size_t i = 0; i < (setup.in_place ? 1 : count); ++i) std::free(context->output_at(i).data);
}

// Runs an operator, with an instruction set or "", the library's own choice; the error's text, or nothing and the bytes
// of all outputs, and the shape of the first.
std::string run(const Setup& setup, const std::string& isa, std::vector<uint8_t>* y, std::vector<int64_t>* shape,
                int times = 1) {
  std::vector<OrtValue> values(setup.inputs.size());
  OrtKernelContext context;
  for (size_t i = 0; i < values.size(); ++i) {
    const Input& input = setup.inputs[i];
    values[i].info = {input.type, input.dims};
    values[i].data = std::malloc(input.bytes.size());
    if (!input.bytes.empty()) std::memcpy(values[i].data, input.bytes.data(), input.bytes.size());
    context.inputs.push_back(input.present ? &values[i] : nullptr);
  }
  const bool half_scales = setup.op == kInt4Op && setup.inputs[2].type == kFloat16;
  const size_t index = (setup.op == kExpertOp ? 12u : half_scales ? 10u : 2u * setup.op) + (setup.half ? 1 : 0);
  const OrtCustomOp* op = setup.op == kAttentionOp ? operators().ops.back() : operators().ops[index];
  const size_t outputs = op->GetOutputTypeCount(op);
  for (size_t i = 0; i < outputs; ++i) context.output_at(i).info.type = op->GetOutputType(op, i);
  void* kernel = nullptr;
  setenv("EDGEKIT_ISA", isa.c_str(), 1);
  OrtStatus* status = op->CreateKernelV2(op, here::api(kApiVersion), &setup.info, &kernel);
  unsetenv("EDGEKIT_ISA");
  if (status == nullptr) {
    for (int i = 0; i < times && status == nullptr; ++i) {
      if (i > 0) free_outputs(setup, outputs, &context);
      begin_outputs(setup, values, outputs, &context);
      status = op->KernelComputeV2(kernel, &context);
    }
    op->KernelDestroy(kernel);
  }
  const std::string message = status ? status->message : "";
  if (status) fake::release_status(status);
  if (message.empty()) {
    if (y) y->clear();
    for (size_t i = 0; y && i < outputs; ++i) {
      const uint8_t* first = static_cast<const uint8_t*>(context.output_at(i).data);
      y->insert(y->end(), first, first + bytes_of(context.output_at(i)));
    }
    if (shape) *shape = context.output.info.dims;
  }
  free_outputs(setup, outputs, &context);
  for (OrtValue& value : values) std::free(value.data);
  check(fake::held == 0, std::to_string(fake::held) + " objects kept after '" + message + "'");
  fake::held = 0;
  return message;
}

std::string run(const Setup& setup) { return run(setup, "", nullptr, nullptr); }

// A call that is accepted: X [2, 130] of ones, W [5, 130], a scale for each row, and a bias.
Setup accepted(bool int8, bool half, int64_t block) {
  const size_t x = 2 * 130, w = 5 * 2 * (int8 ? 128 : 32);
  Setup setup{int8 ? kInt8Op : kTernaryOp, half, {130, 5, block}, {}};
  std::vector<uint8_t> ones(x * (half ? 2 : 4));
  for (size_t i = 0; i < x; ++i) {
    const uint32_t one = half ? 0x3C00 : 0x3F800000;
    std::memcpy(ones.data() + i * (half ? 2 : 4), &one, half ? 2 : 4);
  }
  setup.inputs = {{half ? kFloat16 : kFloat, {2, 130}, ones},
                  {kUint8, {5, 2, int8 ? 128 : 32}, std::vector<uint8_t>(w, 0x55)},
                  {kFloat, {5}, std::vector<uint8_t>(20)},
                  {kFloat, {5}, std::vector<uint8_t>(20)}};
  return setup;
}

// The message when one input claims another type or shape; its bytes are taken away, so that none can be read.
std::string claiming(Setup setup, size_t input, ElementType type, std::vector<int64_t> dims) {
  setup.inputs[input] = {type, std::move(dims), {}};
  return run(setup);
}

// What comes of a call of ONNX Runtime that fails: the first ones read attributes, whose names the operator adds.
std::string of_failure(int call, const std::string& op, int attributes, const char* fourth = "") {
  const char* const kNames[] = {"K", "N", "activation_block_size", fourth};
  if (call >= attributes) return "injected failure";
  return op + ": attribute " + kNames[call] + " is missing or no integer; export the model again";
}

std::string with_attributes(Setup setup, int64_t k, int64_t n, int64_t block) {
  setup.info = {k, n, block};
  return run(setup);
}

std::vector<int64_t> repeated(size_t count, int64_t value) { return std::vector<int64_t>(count, value); }

}  // namespace
}  // namespace edgekit
