// What test_operator.cpp tests of weights whose blocks have a scale each: refusals word for word, and products on each
// instruction set.
#pragma once
#include <algorithm>
#include <array>
#include <cmath>

#include "operator_call.h"

namespace edgekit {
namespace {

// A call that is accepted: X [2, 130] of ones, W [5, 130] in blocks of 64, and a bias.
std::string name_of(Op op) { return op == kInt4Op ? "Int4MatMul" : "Int8BlockMatMul"; }

int64_t bytes_of(Op op, int64_t block) { return op == kInt4Op ? block / 2 : block; }

Setup accepted_blocks(Op op, bool half, int64_t rounding) {
  Setup setup = accepted(false, half, rounding);
  setup.op = op;
  const int64_t bytes = bytes_of(op, 64);
  setup.inputs[kW] = {kUint8, {5, 3, bytes}, std::vector<uint8_t>(static_cast<size_t>(5 * 3 * bytes), 0x9A)};
  setup.inputs[kScales] = {kFloat, {5, 3}, std::vector<uint8_t>(60)};
  return setup;
}

void test_block_attributes(Op tested) {
  const std::string op = name_of(tested) + ": attribute ";
  for (int64_t block : {int64_t{0}, int64_t{8}, int64_t{48}, int64_t{512}, int64_t{-64}, INT64_MIN, INT64_MAX}) {
    Setup setup = accepted_blocks(tested, false, 0);
    setup.info.block_size = block;
    same(run(setup), op + "block_size is " + std::to_string(block) + ", 16, 32, 64, 128 or 256 expected", "block_size");
  }
  for (int64_t rounding : {int64_t{-1}, int64_t{32}, int64_t{128}, INT64_MAX}) {
    const std::string expected = "activation_block_size is " + std::to_string(rounding) + ", 0 (per token) or 64";
    same(run(accepted_blocks(tested, false, rounding)), op + expected + " expected", "activation_block_size");
  }
  for (int64_t k : {int64_t{0}, int64_t{-1}, (int64_t{1} << 17) + 1}) {
    Setup setup = accepted_blocks(tested, false, 0);
    setup.info.k = k;
    same(run(setup), op + "K is " + std::to_string(k) + ", 1 to 131072 expected", "K");
  }
  Setup setup = accepted_blocks(tested, false, 0);
  setup.info.n = int64_t{1} << 31;
  same(run(setup), op + "N is 2147483648, 1 to 2^31 - 1 expected", "N");
}

void test_claims_of_blocks(Op tested, bool half) {
  const Setup good = accepted_blocks(tested, half, 0);
  const int64_t own = bytes_of(tested, 64), other_bits = 96 - own;
  const std::string op = name_of(tested) + ": ", bytes = std::to_string(own) + "]";
  const std::string right = ", [5, 3, " + bytes + " expected (N, K/64 rounded up, bytes of a block)";
  same(claiming(good, kW, kUint8, {5, 2, own}), op + "W is [5, 2, " + bytes + right, "short W");
  same(claiming(good, kW, kUint8, {5, 3, other_bits}), op + "W is [5, 3, " + std::to_string(other_bits) + "]" + right,
       "W of other bits");
  same(claiming(good, kW, kUint8, {5, 96}), op + "W is [5, 96]" + right, "W of rank 2");
  same(claiming(good, kW, kFloat, {5, 3, own}), op + "W has element type 1, uint8 expected", "float W");
  Setup other = good;
  other.info.block_size = 256;
  same(run(other),
       op + "W is [5, 3, " + bytes + ", [5, 1, " + std::to_string(bytes_of(tested, 256)) +
           "] expected (N, K/256 rounded up, bytes of a block)",
       "blocks of W");
  for (const auto& [dims, text] : std::vector<std::pair<std::vector<int64_t>, std::string>>{
           {{1}, "[1]"}, {{5}, "[5]"}, {{}, "[]"}, {{5, 2}, "[5, 2]"}, {{3, 5}, "[3, 5]"}, {{5, 3, 1}, "[5, 3, 1]"}}) {
    same(claiming(good, kScales, kFloat, dims), op + "scales are " + text + ", [5, 3] expected", "scales " + text);
  }
  if (tested == kInt8BlockOp) {
    same(claiming(good, kScales, kFloat16, {5, 3}), op + "scales have element type 10, float32 expected",
         "half scales");
  }
  const std::string types = std::string("float32") + (tested == kInt4Op ? " or float16" : "") + " expected";
  for (const int type : {0, 2, 6, 11, 16}) {  // float64 and bfloat16 among them
    same(claiming(good, kScales, static_cast<ElementType>(type), {5, 3}),
         op + "scales have element type " + std::to_string(type) + ", " + types, "scales of another type");
  }
  if (tested == kInt4Op) {
    same(claiming(good, kScales, kFloat16, {5, 2}), op + "scales are [5, 2], [5, 3] expected", "few half scales");
  }
  same(claiming(good, kBias, kFloat, {4}), op + "bias is [4], [5] expected", "bias");
  const ElementType type = half ? kFloat16 : kFloat;
  same(claiming(good, kX, type, {2, 129}), op + "X [2, 129] has 129 columns, 130 expected (attribute K)", "K of X");
  same(claiming(good, kX, kUint8, {2, 130}), op + "X has element type 2, float" + (half ? "16" : "32") + " expected",
       "X");
  const char* missing[] = {"X is missing", "W is missing", "scales are missing"};
  for (size_t i = 0; i < 3; ++i) {
    Setup left_out = good;
    left_out.inputs[i].present = false;
    same(run(left_out), op + missing[i], "an input left out");
  }
}

void test_block_refusals(Op tested) {
  test_block_attributes(tested);
  for (bool half : {false, true}) {
    test_claims_of_blocks(tested, half);
    for (int64_t rounding : {0, 64}) {
      Setup setup = accepted_blocks(tested, half, rounding);
      same(run(setup), "", "the call that the others spoil");
      fake::calls = 0;
      run(setup);
      const int calls = fake::calls;
      for (int i = 0; i < calls; ++i) {
        fake::calls = 0, fake::fail_at = i;
        same(run(setup), of_failure(i, name_of(tested), 4, "block_size"), "blocks, call " + std::to_string(i));
      }
      fake::fail_at = -1;
      setup.inputs.pop_back();
      same(run(setup), "", "without a bias");
      setup.inputs[kX].dims = {3, 0, 130};
      setup.inputs[kX].bytes.clear();
      std::vector<int64_t> shape;
      same(run(setup, "", nullptr, &shape), "", "an empty batch");
      check(shape == std::vector<int64_t>{3, 0, 5}, "an empty batch gives an empty Y");
      for (size_t at : {0, 63, 64, 129, 130, 259}) {
        setup = accepted_blocks(tested, half, rounding);
        std::memset(setup.inputs[kX].bytes.data() + at * (half ? 2 : 4), 0xFF, half ? 2 : 4);
        same(run(setup),
             name_of(tested) +
                 ": X holds NaN or infinity, which has no 8-bit code; look for the first layer whose output is not "
                 "finite",
             "X not finite at " + std::to_string(at));
      }
    }
  }
}

// A float16 that is a number.
float widened(int bits) {
  const int exponent = bits >> 10 & 31, digits = bits & 1023;
  const float size = exponent ? std::ldexp(static_cast<float>(1024 + digits), exponent - 25)
                              : std::ldexp(static_cast<float>(digits), -24);
  return bits & 0x8000 ? -size : size;
}

// What the operator is, element by element as docs/operators.md has it; X is of floats.
std::vector<uint8_t> defined(const Setup& setup, size_t m) {
  const size_t k = static_cast<size_t>(setup.info.k), n = static_cast<size_t>(setup.info.n);
  const size_t block = static_cast<size_t>(setup.info.block_size), blocks = (k + block - 1) / block;
  const auto floats = [&](Position input) { return reinterpret_cast<const float*>(setup.inputs[input].bytes.data()); };
  std::vector<float> scales;
  for (size_t i = 0; i < n * blocks; ++i) {
    const uint8_t* at = setup.inputs[kScales].bytes.data();
    scales.push_back(setup.inputs[kScales].type == kFloat ? floats(kScales)[i]
                                                          : widened(at[2 * i] | at[2 * i + 1] << 8));
  }
  std::vector<uint8_t> bytes(m * n * 4);
  for (size_t t = 0; t < m; ++t) {
    const float* x = floats(kX) + t * k;
    std::vector<int32_t> codes(blocks * block);
    std::vector<float> steps(blocks);
    float largest = 0;
    for (size_t b = 0; b < blocks; ++b) {
      const size_t begin = b * block, end = std::min(k, begin + block);
      if (b == 0 || setup.info.block) {
        largest = 1e-30f;
        for (size_t i = begin; i < (setup.info.block ? end : k); ++i) largest = std::max(largest, std::fabs(x[i]));
      }
      steps[b] = largest / 127.0f;
      for (size_t i = begin; i < end; ++i) codes[i] = static_cast<int32_t>(std::nearbyint(x[i] * (127.0f / largest)));
    }
    for (size_t r = 0; r < n; ++r) {
      const bool int4 = setup.op == kInt4Op;
      const uint8_t* w = setup.inputs[kW].bytes.data() + r * blocks * block / (int4 ? 2 : 1);
      float y = 0;
      for (size_t b = 0; b < blocks; ++b) {
        int32_t sum = 0;
        for (size_t i = b * block; i < (b + 1) * block; ++i) {
          sum += (int4 ? (w[i / 2] >> (i % 2 * 4) & 15) - 8 : w[i] - 128) * codes[i];
        }
        y += static_cast<float>(sum) * (steps[b] * scales[r * blocks + b]);
      }
      if (setup.inputs.size() > kBias) y += floats(kBias)[r];
      std::memcpy(bytes.data() + (t * n + r) * 4, &y, 4);
    }
  }
  return bytes;
}

// Float16 of every exponent but the one that no number has.
Input random_halves(std::vector<int64_t> dims, uint32_t* state) {
  Input input{kFloat16, dims, {}};
  size_t count = 1;
  for (int64_t d : dims) count *= static_cast<size_t>(d);
  for (size_t i = 0; i < count; ++i) {
    *state = *state * 1664525 + 1013904223;
    const uint32_t drawn = *state >> 16, half = (drawn & 0x7C00) == 0x7C00 ? drawn & 0x83FF : drawn;
    input.bytes.push_back(static_cast<uint8_t>(half)), input.bytes.push_back(static_cast<uint8_t>(half >> 8));
  }
  return input;
}

Input random_floats(std::vector<int64_t> dims, uint32_t* state) {
  Input input{kFloat, dims, {}};
  size_t count = 4;
  for (int64_t d : dims) count *= static_cast<size_t>(d);
  input.bytes.resize(count);
  for (size_t i = 0; i < count; i += 4) {
    *state = *state * 1664525 + 1013904223;
    const float value = static_cast<float>(static_cast<int32_t>(*state)) / 1e9f;
    std::memcpy(input.bytes.data() + i, &value, 4);
  }
  return input;
}

// Every block size, numbers of rows that are no multiple of anything, one to many tokens, in threads and alone.
void test_block_products(const std::string& isa, Op op, bool half_scales = false) {
  uint32_t state = 1;
  for (int64_t block : {16, 32, 64, 128, 256}) {
    for (const auto& [m, n, k] : std::vector<std::array<int64_t, 3>>{{1, 5, 130},
                                                                     {1, 45, 576},
                                                                     {1, 64, 1300},
                                                                     {2, 33, 300},
                                                                     {3, 40, 96},
                                                                     {4, 17, 700},
                                                                     {17, 71, 600},
                                                                     {135, 35, 1100}}) {
      const int64_t blocks = (k + block - 1) / block;
      Setup setup{op, false, {k, n, (m + n) % 2 * block}, {}};
      setup.info.block_size = block;
      const int64_t bytes = bytes_of(op, block);
      Input w{kUint8, {n, blocks, bytes}, std::vector<uint8_t>(static_cast<size_t>(n * blocks * bytes))};
      for (uint8_t& byte : w.bytes) state = state * 1664525 + 1013904223, byte = static_cast<uint8_t>(state >> 24);
      const auto scales = half_scales ? random_halves : random_floats;
      setup.inputs = {random_floats({m, k}, &state), w, scales({n, blocks}, &state)};
      if (m > 1) setup.inputs.push_back(random_floats({n}, &state));
      std::vector<uint8_t> alone, shared;
      same(run(setup, isa, &alone, nullptr), "", name_of(op) + ", alone");
      here::threads = true;
      same(run(setup, isa, &shared, nullptr), "", name_of(op) + ", in threads");
      here::threads = false;
      const std::string what = std::to_string(m) + " x " + std::to_string(n) + " x " + std::to_string(k);
      check(alone == shared, isa + ": " + name_of(op) + ", threads change bits, " + what);
      check(alone == defined(setup, static_cast<size_t>(m)),
            isa + ": " + name_of(op) + ", other bits than defined, " + what);
    }
  }
}

}  // namespace
}  // namespace edgekit
