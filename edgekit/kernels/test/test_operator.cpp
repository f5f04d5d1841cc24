// The operators from registration to destruction on fake_ort.h: every refusal word for word, empty batches, nothing
// kept when any call of ONNX Runtime fails, and the golden vectors bit for bit on every instruction set of this
// processor. Arguments: the directory of the golden vectors, then names of instruction sets that must have run.
#include <algorithm>
#include <cmath>
#include <cstdio>

#include "attention_operator_tests.h"
#include "block_tests.h"
#include "expert_tests.h"
#include "fake_ort.h"
#include "golden.h"
#include "half.h"
#include "operator_call.h"
#include "processor.h"
#include "sparse_tests.h"

#if defined(__linux__) && defined(__aarch64__)
#include <sys/auxv.h>
#endif

extern "C" const char* EdgekitOpsVersion();

using namespace edgekit;

namespace {

#if defined(__linux__) && defined(__aarch64__)
// Weak in the library: a static program would leave it out.
[[maybe_unused]] unsigned long (*const volatile kKept)(unsigned long) = &getauxval;
#endif

void test_attributes(bool int8, bool half) {
  const Setup good = accepted(int8, half, 0);
  const std::string op = int8 ? "Int8MatMul: " : "TernaryMatMul: ";
  const std::string most = int8 ? "131072" : "4194304";
  const int64_t least = INT64_MIN, huge = INT64_MAX;
  for (int64_t k : {int64_t{0}, int64_t{-1}, least, huge, (int64_t{1} << (int8 ? 17 : 22)) + 1}) {
    same(with_attributes(good, k, 5, 0), op + "attribute K is " + std::to_string(k) + ", 1 to " + most + " expected",
         "K");
  }
  for (int64_t n : {int64_t{0}, int64_t{-7}, least, huge, int64_t{1} << 31}) {
    same(with_attributes(good, 130, n, 0), op + "attribute N is " + std::to_string(n) + ", 1 to 2^31 - 1 expected",
         "N");
  }
  for (int64_t block : {int64_t{-1}, int64_t{1}, int64_t{64}, int64_t{129}, least, huge}) {
    same(with_attributes(good, 130, 5, block),
         op + "attribute activation_block_size is " + std::to_string(block) + ", 0 (per token) or 128 expected",
         "activation_block_size");
  }
}

void test_claims_of_x(bool int8, bool half) {
  const Setup good = accepted(int8, half, 0);
  const std::string x = int8 ? "Int8MatMul: X " : "TernaryMatMul: X ", few = " is too large: fewer than 2^31 rows";
  const ElementType type = half ? kFloat16 : kFloat;
  same(claiming(good, kX, type, {2, 129}), x + "[2, 129] has 129 columns, 130 expected (attribute K)", "K of X");
  same(claiming(good, kX, type, {130, 2}), x + "[130, 2] has 2 columns, 130 expected (attribute K)", "X transposed");
  same(claiming(good, kX, type, {}), x + "has 0 dimensions, 1 to 16 expected", "rank 0");
  same(claiming(good, kX, type, repeated(17, 1)), x + "has 17 dimensions, 1 to 16 expected", "rank 17");
  same(claiming(good, kX, half ? kFloat : kFloat16, {2, 130}),
       x + "has element type " + (half ? "1, float16 expected" : "10, float32 expected"), "type of X");
  same(claiming(good, kX, type, {-1, 130}), x + "[-1, 130]" + few, "a negative dimension");
  same(claiming(good, kX, type, {2, -1}), x + "[2, -1] has -1 columns, 130 expected (attribute K)", "negative K");
  same(claiming(good, kX, type, {int64_t{1} << 31, 130}), x + "[2147483648, 130]" + few, "2^31 rows");
  same(claiming(good, kX, type, {65536, 32768, 130}), x + "[65536, 32768, 130]" + few, "2^31 rows of two dimensions");
  same(claiming(good, kX, type, {INT64_MAX, INT64_MAX, 130}),
       x + "[9223372036854775807, 9223372036854775807, 130]" + few, "a product beyond 64 bits");
}

// X of 2^31 - 1 rows is allowed, the memory for its codes is not: neither is touched.
void test_rows_too_many(bool int8, bool half) {
  Setup setup = accepted(int8, half, 0);
  setup.info = {int8 ? int64_t{1} << 17 : int64_t{1} << 22, 1, 0};
  setup.inputs[kX] = {half ? kFloat16 : kFloat, {(int64_t{1} << 31) - 1, setup.info.k}, {}};
  setup.inputs[kW] = {kUint8, {1, setup.info.k / 128, int8 ? 128 : 32}, {}};
  setup.inputs[kScales] = setup.inputs[kBias] = {kFloat, {1}, {}};
  same(run(setup),
       std::string(int8 ? "Int8MatMul" : "TernaryMatMul") + ": X has 2147483647 rows, too many for one call",
       "memory for X");
}

void test_claims_of_weights(bool int8, bool half) {
  const Setup good = accepted(int8, half, 0);
  const std::string op = int8 ? "Int8MatMul: " : "TernaryMatMul: ", bytes = int8 ? "128" : "32";
  const std::string right = ", [5, 2, " + bytes + "] expected (N, K/128 rounded up, bytes of a block)";
  const int64_t b = int8 ? 128 : 32;
  same(claiming(good, kW, kUint8, {5, 1, b}), op + "W is [5, 1, " + bytes + "]" + right, "short W");
  same(claiming(good, kW, kUint8, {4, 2, b}), op + "W is [4, 2, " + bytes + "]" + right, "W of another N");
  same(claiming(good, kW, kUint8, {5, 2, b - 1}), op + "W is [5, 2, " + std::to_string(b - 1) + "]" + right,
       "W of other blocks");
  same(claiming(good, kW, kUint8, {5, 2 * b}), op + "W is [5, " + std::to_string(2 * b) + "]" + right, "W of rank 2");
  same(claiming(good, kW, kUint8, {}), op + "W is []" + right, "W of rank 0");
  same(claiming(good, kW, kUint8, {5, 2, b, 1}), op + "W is [5, 2, " + bytes + ", 1]" + right, "W of rank 4");
  same(claiming(good, kW, kUint8, {INT64_MIN, INT64_MAX, -1}),
       op + "W is [-9223372036854775808, 9223372036854775807, -1]" + right, "W of impossible dimensions");
  same(claiming(good, kW, static_cast<ElementType>(3), {5, 2, b}), op + "W has element type 3, uint8 expected",
       "int8 W");
  const std::string forms = int8 ? ", [1], [5] expected" : ", [1], [5] or [5, 2] expected";
  for (const auto& [dims, text] : std::vector<std::pair<std::vector<int64_t>, std::string>>{{{4}, "[4]"},
                                                                                            {{}, "[]"},
                                                                                            {{1, 5}, "[1, 5]"},
                                                                                            {{5, 1}, "[5, 1]"},
                                                                                            {{5, 3}, "[5, 3]"},
                                                                                            {{0}, "[0]"},
                                                                                            {{5, 2, 1}, "[5, 2, 1]"},
                                                                                            {{-1}, "[-1]"}}) {
    same(claiming(good, kScales, kFloat, dims), op + "scales are " + text + forms, "scales " + text);
  }
  if (int8) same(claiming(good, kScales, kFloat, {5, 2}), op + "scales are [5, 2]" + forms, "scales of blocks");
  same(claiming(good, kScales, kFloat16, {5}), op + "scales have element type 10, float32 expected", "half scales");
  for (const auto& [dims, text] : std::vector<std::pair<std::vector<int64_t>, std::string>>{
           {{4}, "[4]"}, {{1}, "[1]"}, {{}, "[]"}, {{1, 5}, "[1, 5]"}, {{-5}, "[-5]"}}) {
    same(claiming(good, kBias, kFloat, dims), op + "bias is " + text + ", [5] expected", "bias " + text);
  }
  same(claiming(good, kBias, kFloat16, {5}), op + "bias has element type 10, float32 expected", "half bias");
}

void test_missing(bool int8, bool half) {
  const std::string op = int8 ? "Int8MatMul: " : "TernaryMatMul: ";
  const char* messages[] = {"X is missing", "W is missing", "scales are missing", ""};
  for (size_t i = 0; i < 4; ++i) {
    Setup left_out = accepted(int8, half, 0), ended = left_out;
    left_out.inputs[i].present = false;
    ended.inputs.resize(i);
    const std::string expected = *messages[i] ? op + messages[i] : "";
    same(run(left_out), expected, "input " + std::to_string(i) + " left out");
    same(run(ended), expected, "only " + std::to_string(i) + " inputs");
  }
}

void test_not_finite(bool int8, bool half, int64_t block) {
  const std::string expected = std::string(int8 ? "Int8MatMul" : "TernaryMatMul") +
                               ": X holds NaN or infinity, which has no 8-bit code; look for the first layer whose "
                               "output is not finite";
  const uint32_t floats[] = {0x7F800000, 0xFF800000, 0x7FC00000, 0xFFC00000, 0x7F800001};
  const uint16_t halves[] = {0x7C00, 0xFC00, 0x7E00, 0xFE00, 0x7C01};
  for (size_t kind = 0; kind < 5; ++kind) {
    for (size_t at : {0, 127, 128, 129, 130, 259}) {
      Setup setup = accepted(int8, half, block);
      uint8_t* x = setup.inputs[kX].bytes.data();
      if (half) std::memcpy(x + 2 * at, halves + kind, 2);
      if (!half) std::memcpy(x + 4 * at, floats + kind, 4);
      same(run(setup), expected, "X not finite at " + std::to_string(at));
    }
  }
}

void test_empty(bool int8, bool half, int64_t block) {
  for (const std::vector<int64_t>& dims :
       std::vector<std::vector<int64_t>>{{0, 130}, {3, 0, 130}, {0, 3, 130}, {0, 2147483647, 2147483647, 130}}) {
    Setup setup = accepted(int8, half, block);
    setup.inputs[kX] = {half ? kFloat16 : kFloat, dims, {}};
    std::vector<uint8_t> y(1);
    std::vector<int64_t> shape, expected = dims;
    expected.back() = 5;
    same(run(setup, "", &y, &shape), "", "an empty batch");
    check(y.empty() && shape == expected, "an empty batch gives an empty Y of its shape");
  }
}

void test_ranks(bool int8, bool half) {
  Setup setup = accepted(int8, half, 0);
  std::vector<uint8_t> expected, found;
  std::vector<int64_t> shape;
  same(run(setup, "", &expected, nullptr), "", "rank 2");
  setup.inputs[kX].dims = repeated(16, 1);
  setup.inputs[kX].dims[3] = 2;
  setup.inputs[kX].dims[15] = 130;
  same(run(setup, "", &found, &shape), "", "rank 16");
  check(found == expected && shape.size() == 16 && shape[3] == 2 && shape[15] == 5, "rank 16 as rank 2");
  setup.inputs[kX].dims = {130};
  setup.inputs[kX].bytes.resize(setup.inputs[kX].bytes.size() / 2);
  same(run(setup, "", &found, &shape), "", "rank 1");
  expected.resize(expected.size() / 2);
  check(found == expected && shape == std::vector<int64_t>{5}, "rank 1 as the first row");
}

// Every call of ONNX Runtime fails once: its status comes out and nothing is kept (run() counts).
void test_injected_failures(bool int8, bool half, int64_t block, bool with_bias) {
  Setup setup = accepted(int8, half, block);
  if (!with_bias) setup.inputs.resize(3);
  fake::calls = 0;
  same(run(setup), "", "before failures are injected");
  const int calls = fake::calls;
  check(calls >= 20, "calls of ONNX Runtime are counted");
  for (int i = 0; i < calls; ++i) {
    fake::calls = 0, fake::fail_at = i;
    same(run(setup), of_failure(i, int8 ? "Int8MatMul" : "TernaryMatMul", 3),
         "call " + std::to_string(i) + " of " + std::to_string(calls) + " fails");
  }
  fake::fail_at = -1;
  here::free_fails = true;
  same(run(setup), "AllocatorFree failed", "memory cannot be given back");
  std::memset(setup.inputs[kX].bytes.data(), 0xFF, setup.inputs[kX].bytes.size());
  check(run(setup).find("X holds NaN") != std::string::npos, "the first error is the one told");
  here::free_fails = false;
}

// Registration: each call fails once. A domain that was made is not given back, statuses are.
constexpr int kProducts = 12;  // five operators for two types of X, and Int4MatMul with float16 scales

void test_registration() {
#if defined(__arm__)
  const int count = kProducts + 1;  // with ExpertMatMul
#else
  const int count = kProducts + (choose() == &kScalar ? 1 : 2);  // with CachedAttention
#endif
  for (int i = -1; i < count + 2; ++i) {
    OrtSessionOptions options;
    fake::calls = 0, fake::fail_at = i;
    OrtStatus* status = RegisterCustomOps(&options, &here::kBase);
    fake::fail_at = -1;
    same(status ? status->message : "", i < 0 ? "" : "injected failure", "registration, call " + std::to_string(i));
    const bool all = i >= 0 || (fake::calls == count + 2 && options.domain->ops.size() == static_cast<size_t>(count));
    check(all, "every operator is registered");
    if (status) fake::release_status(status);
    check(fake::held == 0, "registration keeps no status");
  }
  OrtSessionOptions options;
  here::old_runtime = true;
  check(RegisterCustomOps(&options, &here::kBase) == nullptr && options.domain == nullptr, "ONNX Runtime before 1.18");
  here::old_runtime = false;
}

void test_instruction_set_by_name(const std::vector<std::string>& supported) {
  std::string listed;
  for (const std::string& isa : supported) listed += (listed.empty() ? "" : " ") + isa;
  for (const std::string& wrong :
       {std::string("sve9"), std::string("AVX2"), std::string("scala"), std::string(900, 'x')}) {
    setenv("EDGEKIT_ISA", wrong.c_str(), 1);
    OrtSessionOptions options;
    OrtStatus* status = RegisterCustomOps(&options, &here::kBase);
    const std::string expected = "EDGEKIT_ISA=" + wrong + ": this processor cannot run it; it has " + listed +
                                 ". Unset EDGEKIT_ISA to let the library choose";
    same(status ? status->message : "", expected.substr(0, 399), "an unknown instruction set");
    if (status) fake::release_status(status);
    status = operators().ops[0]->CreateKernelV2(operators().ops[0], here::api(kApiVersion), nullptr, nullptr);
    same(status ? status->message : "", expected.substr(0, 399), "an unknown instruction set for a node");
    if (status) fake::release_status(status);
    const std::string version = EdgekitOpsVersion();
    check(version.find(" none " + listed + "; ") != std::string::npos, "version: " + version);
  }
  for (const std::string& isa : supported) {
    setenv("EDGEKIT_ISA", isa.c_str(), 1);
    const std::string version = EdgekitOpsVersion();
    check(version.find(" " + isa + " " + listed + "; ") != std::string::npos, "version: " + version);
  }
  unsetenv("EDGEKIT_ISA");
}

void test_description() {
  const std::vector<const OrtCustomOp*>& ops = operators().ops;
  const char* const names[] = {"TernaryMatMul", "Int8MatMul",      "SparseMatMul",
                               "Int4MatMul",    "Int8BlockMatMul", "Int4MatMul"};
  const OrtCustomOp* experts = ops[kProducts];
  same(experts->GetName(experts), "ExpertMatMul", "name");
  check(experts->GetInputTypeCount(experts) == 4 && experts->GetOutputTypeCount(experts) == 1, "inputs and outputs");
  const ElementType types[] = {kFloat, kInt64, kUint8, kFloat};
  for (size_t j = 0; j < 4; ++j) {
    check(experts->GetInputType(experts, j) == types[j], "types of inputs for experts");
    check(experts->GetInputCharacteristic(experts, j) == kRequired, "nothing may be left out");
  }
  for (size_t i = kProducts + 1; i < ops.size(); ++i) {
    const OrtCustomOp* op = ops[i];
    same(op->GetName(op), "CachedAttention", "name");
    same(op->GetExecutionProviderType(op), "CPUExecutionProvider", "provider");
    check(op->GetInputTypeCount(op) == 10 && op->GetOutputTypeCount(op) == 3, "numbers of inputs and outputs");
    for (size_t j = 0; j < 10; ++j) {
      check(op->GetInputType(op, j) == (j == 5 || j == 6 ? kInt32 : kFloat), "types of inputs");
      const bool optional = j == 1 || j == 2 || j > 6;
      check(op->GetInputCharacteristic(op, j) == (optional ? kOptional : kRequired), "what may be left out");
    }
  }
  for (size_t i = 0; i < kProducts; ++i) {
    const OrtCustomOp* op = ops[i];
    const ElementType scales = i < 10 ? kFloat : kFloat16;
    const ElementType x = i % 2 ? kFloat16 : kFloat;
    same(op->GetName(op), names[i / 2], "name");
    same(op->GetExecutionProviderType(op), "CPUExecutionProvider", "provider");
    check(op->GetInputTypeCount(op) == 4 && op->GetOutputTypeCount(op) == 1, "numbers of inputs and outputs");
    check(op->GetInputType(op, 0) == x && op->GetOutputType(op, 0) == x, "types of X and Y");
    check(op->GetInputType(op, 1) == kUint8 && op->GetInputType(op, 2) == scales, "types of W and scales");
    check(op->GetInputType(op, 3) == kFloat && op->GetInputCharacteristic(op, 3) == kOptional, "bias is optional");
    for (size_t j = 0; j < 3; ++j) check(op->GetInputCharacteristic(op, j) == kRequired, "others are not");
  }
}

uint16_t half_of(float x) {
  uint16_t half;
  to_half(&x, 1, &half);
  return half;
}

// Every float16 there and back, and what lies between it and the next: the nearer one, and from the middle the even
// one.
void test_half() {
  int wrong = 0;
  for (uint32_t bits = 0; bits < 0x7C00; ++bits) {
    const uint16_t both[] = {static_cast<uint16_t>(bits), static_cast<uint16_t>(bits + 1)};
    float value[2];
    to_float(both, 2, value);
    const int exponent = static_cast<int>(bits >> 10);
    const uint32_t fraction = (bits & 0x3FF) | (exponent ? 0x400 : 0);
    wrong += value[0] != std::ldexp(static_cast<float>(fraction), (exponent ? exponent : 1) - 25);
    if (bits == 0x7BFF) value[1] = 65536.0f;  // where infinity stands when it is rounded to
    const float middle = value[0] + (value[1] - value[0]) / 2;
    const uint16_t even = both[bits & 1];
    wrong += half_of(value[0]) != both[0] || half_of(middle) != even;
    wrong += half_of(std::nextafter(middle, 0.0f)) != both[0] || half_of(std::nextafter(middle, 1e9f)) != both[1];
    wrong += half_of(-value[0]) != (both[0] | 0x8000) || half_of(-middle) != (even | 0x8000);
  }
  check(wrong == 0, "float16: " + std::to_string(wrong) + " conversions are wrong");
  check(half_of(1e30f) == 0x7C00 && half_of(-1e30f) == 0xFC00, "float16: what is too large is infinite");
  check(half_of(INFINITY) == 0x7C00 && half_of(-NAN) == 0xFE00 && half_of(NAN) == 0x7E00, "float16: not finite");
  check(half_of(1e-30f) == 0 && half_of(-1e-30f) == 0x8000, "float16: what is too small is zero");
}

// Below 1e-30 the step stops getting smaller: 1e-31 is 12.7 of 127 steps, 1e-38 none; 127 / 1e-38 would be infinite.
void test_tiny(const std::string& isa) {
  for (int64_t block : {0, 128}) {
    for (const auto& [value, code] : {std::pair{1e-31f, 13}, {1e-38f, 0}, {1e-44f, 0}, {0.0f, 0}, {1e-30f, 127}}) {
      Setup setup = accepted(false, false, block);
      for (size_t i = 0; i < 260; ++i) std::memcpy(setup.inputs[kX].bytes.data() + 4 * i, &value, 4);
      std::fill(setup.inputs[kW].bytes.begin(), setup.inputs[kW].bytes.end(), uint8_t{0xAA});  // weights of 1
      const float one = 1.0f, step = 1e-30f / 127.0f;
      setup.inputs[kScales] = {kFloat, {1}, std::vector<uint8_t>(4)};
      std::memcpy(setup.inputs[kScales].bytes.data(), &one, 4);
      const float whole = static_cast<float>(130 * code) * step;
      const float parts = static_cast<float>(128 * code) * step + static_cast<float>(2 * code) * step;
      std::vector<uint8_t> y, expected(40);
      for (size_t i = 0; i < 10; ++i) std::memcpy(expected.data() + 4 * i, block ? &parts : &whole, 4);
      same(run(setup, isa, &y, nullptr), "", "tiny X");
      check(y == expected, isa + ": X of " + std::to_string(std::log10(value)) + " in powers of ten");
    }
  }
}

Setup setup_of(const GoldenCase& golden) {
  if (golden.op == "CachedAttention") return setup_of_attention(golden);
  if (golden.op == "ExpertMatMul") return setup_of_experts(golden);
  const auto attribute = [&](const char* name) { return static_cast<int64_t>(golden.attributes.at(name)); };
  static const std::map<std::string, Op> kOps = {{"TernaryMatMul", kTernaryOp},
                                                 {"Int8MatMul", kInt8Op},
                                                 {"SparseMatMul", kSparseOp},
                                                 {"Int4MatMul", kInt4Op},
                                                 {"Int8BlockMatMul", kInt8BlockOp}};
  Setup setup{kOps.at(golden.op), golden.arrays.at("X").dtype == "float16", {}, {}};
  setup.info = {attribute("K"), attribute("N"), attribute("activation_block_size")};
  if (setup.op == kSparseOp) setup.info.bits = attribute("bits");
  if (setup.op >= kInt4Op) setup.info.block_size = attribute("block_size");
  for (const char* name : {"X", "W", "scales", "bias"}) {
    const auto found = golden.arrays.find(name);
    if (found == golden.arrays.end()) continue;
    const GoldenArray& array = found->second;
    const ElementType type = array.dtype == "float32" ? kFloat : array.dtype == "float16" ? kFloat16 : kUint8;
    setup.inputs.push_back({type, array.shape, array.bytes});
  }
  return setup;
}

void test_golden(const std::vector<GoldenCase>& cases, const std::string& isa) {
  const int failed = failures;
  for (bool threads : {false, true}) {
    here::threads = threads;
    for (const GoldenCase& golden : cases) {
      const bool attention = golden.op == "CachedAttention";
      if (attention && !has_attention()) continue;
      std::vector<uint8_t> y;
      std::vector<int64_t> shape;
      const std::string where = isa + ", " + golden.name + (threads ? ", threads" : "");
      same(run(setup_of(golden), isa, &y, &shape), "", where);
      const std::vector<uint8_t> bytes = attention ? results_of_attention(golden) : golden.arrays.at("Y").bytes;
      check(y == bytes && shape == golden.arrays.at(attention ? "output" : "Y").shape, where + ": other bits");
    }
  }
  here::threads = false;
  std::printf("%s: %zu golden cases, %s\n", isa.c_str(), cases.size(), failures == failed ? "exact" : "FAILED");
}

// A product that is worth several batches, in threads and alone, by gemv() and by tile().
void test_threads(bool int8, bool half, const std::string& isa) {
  for (int64_t m : {int64_t{1}, int64_t{4}, int64_t{33}, int64_t{150}}) {
    const int64_t k = 1300, n = 1030, blocks = 11, bytes = int8 ? 128 : 32;
    Setup setup{int8 ? kInt8Op : kTernaryOp, half, {k, n, int8 ? 0 : 128}, {}};
    Input x{half ? kFloat16 : kFloat, {m, k}, std::vector<uint8_t>(static_cast<size_t>(m * k) * (half ? 2 : 4))};
    Input w{kUint8, {n, blocks, bytes}, std::vector<uint8_t>(static_cast<size_t>(n * blocks * bytes))};
    uint32_t state = 1;
    for (uint8_t& byte : x.bytes) state = state * 1664525 + 1013904223, byte = static_cast<uint8_t>(state >> 26);
    for (uint8_t& byte : w.bytes) state = state * 1664525 + 1013904223, byte = static_cast<uint8_t>(state >> 24);
    const float scale = 0.25f;
    Input scales{kFloat, {1}, std::vector<uint8_t>(4)};
    std::memcpy(scales.bytes.data(), &scale, 4);
    setup.inputs = {x, w, scales};
    std::vector<uint8_t> alone, shared, reference;
    same(run(setup, isa, &alone, nullptr), "", "alone");
    here::threads = true;
    same(run(setup, isa, &shared, nullptr), "", "in threads");
    here::threads = false;
    same(run(setup, "scalar", &reference, nullptr), "", "scalar");
    check(alone == shared, isa + ": threads change bits, " + std::to_string(m) + " rows");
    check(alone == reference, isa + ": other bits than scalar, " + std::to_string(m) + " rows");
  }
}

void test_refusals() {
  for (bool int8 : {false, true}) {
    for (bool half : {false, true}) {
      test_attributes(int8, half);
      test_claims_of_x(int8, half);
      test_claims_of_weights(int8, half);
      test_rows_too_many(int8, half);
      test_missing(int8, half);
      test_ranks(int8, half);
      for (int64_t block : {0, 128}) {
        same(run(accepted(int8, half, block)), "", "the call that the others spoil");
        test_not_finite(int8, half, block);
        test_empty(int8, half, block);
        for (bool bias : {false, true}) test_injected_failures(int8, half, block, bias);
      }
    }
  }
}

}  // namespace

int main(int count, char** arguments) {
  std::setvbuf(stdout, nullptr, _IOLBF, 0);
  if (count < 2) return std::printf("usage: test_operator tests/vectors/operators [instruction sets]\n"), 2;
  unsetenv("EDGEKIT_ISA");
  if (std::getenv("EDGEKIT_ISA") != nullptr) return 2;  // also keeps getenv, weak in the library, in a static program
  const std::vector<GoldenCase> cases = read_golden(arguments[1]);
  std::vector<std::string> supported;
  for (size_t i = 0; i < kCandidateCount; ++i) {
    if (kCandidates[i].supported()) supported.push_back(kCandidates[i].kernels->name);
  }
  test_half();
  test_description();
  test_registration();
  test_instruction_set_by_name(supported);
  test_refusals();
  test_sparse_refusals();
  for (Op op : {kInt4Op, kInt8BlockOp}) test_block_refusals(op);
  test_expert_refusals();
  test_attention_refusals();
  check(!cases.empty(), "there are golden cases");
  for (const std::string& isa : supported) test_golden(cases, isa);
  for (int64_t bits : {4, 8}) {
    test_damaged_sparse(bits, bits == 4 ? 0 : 128, supported);
  }
  for (const std::string& isa : supported) {
    test_tiny(isa);
    test_sparse_products(isa);
    for (Op op : {kInt4Op, kInt8BlockOp}) test_block_products(isa, op);
    test_block_products(isa, kInt4Op, true);
    test_expert_products(isa);
    test_attention_threads(isa);
    for (bool int8 : {false, true}) {
      for (bool half : {false, true}) test_threads(int8, half, isa);
    }
  }
  for (int i = 2; i < count; ++i) {
    const bool ran = std::find(supported.begin(), supported.end(), arguments[i]) != supported.end();
    check(ran, std::string(arguments[i]) + " was not run: this processor has none");
  }
  std::printf("%d checks, %d failed\n", checks, failures);
  return failures != 0;
}
