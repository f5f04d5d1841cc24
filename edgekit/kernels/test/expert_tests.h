// What test_operator.cpp tests of ExpertMatMul: refusals word for word, failing calls, and that each pair gets what the
// operator for one weight gives, on each instruction set.
#pragma once
#include <array>

#include "block_tests.h"
#include "experts.h"

namespace edgekit {
namespace {

// A call that is accepted: X [3, 128] of ones, each row for 2 of 4 experts with W [5, 128] of 4 bits in blocks of 64.
Setup accepted_experts() {
  Setup setup{kExpertOp, false, {128, 5, 0}, {}};
  setup.info.bits = 4;
  Input x{kFloat, {3, 128}, std::vector<uint8_t>(3 * 128 * 4)}, index{kInt64, {3, 2}, std::vector<uint8_t>(6 * 8)};
  const float one = 1.0f;
  for (size_t i = 0; i < x.bytes.size(); i += 4) std::memcpy(x.bytes.data() + i, &one, 4);
  for (size_t p = 0; p < 6; ++p) index.bytes[8 * p] = static_cast<uint8_t>((p * 3 + 1) % 4);
  setup.inputs = {x,
                  index,
                  {kUint8, {4, 5, 2, 32}, std::vector<uint8_t>(4 * 5 * 2 * 32, 0x9A)},
                  {kFloat, {4, 5, 2}, std::vector<uint8_t>(4 * 5 * 2 * 4, 0x3E)}};
  return setup;
}

void refuse_experts(const std::string& found, const std::string& expected) {
  same(found, "ExpertMatMul: " + expected, "experts");
}

void test_expert_attributes() {
  const auto with = [](int64_t k, int64_t n, int64_t bits, int64_t block) {
    Setup setup = accepted_experts();
    setup.info = {k, n, 0, bits, block};
    return run(setup);
  };
  for (int64_t bits : {int64_t{0}, int64_t{1}, int64_t{3}, int64_t{16}, INT64_MIN, INT64_MAX}) {
    refuse_experts(with(128, 5, bits, 64), "attribute bits is " + std::to_string(bits) + ", 2, 4 or 8 expected");
  }
  for (int64_t block : {int64_t{0}, int64_t{8}, int64_t{48}, int64_t{512}, int64_t{-64}, INT64_MIN, INT64_MAX}) {
    refuse_experts(with(128, 5, 4, block),
                   "attribute block_size is " + std::to_string(block) + ", 16, 32, 64, 128 or 256 expected");
  }
  refuse_experts(with(128, 5, 2, 64), "attribute block_size is 64, 128 expected with 2 bits");
  for (int64_t k : {int64_t{0}, int64_t{-64}, int64_t{100}, (int64_t{1} << 17) + 64, INT64_MIN, INT64_MAX}) {
    refuse_experts(with(k, 5, 4, 64),
                   "attribute K is " + std::to_string(k) + ", a multiple of 64 up to 131072 expected");
  }
  for (int64_t n : {int64_t{0}, int64_t{-1}, int64_t{1} << 31}) {
    refuse_experts(with(128, n, 4, 64), "attribute N is " + std::to_string(n) + ", 1 to 2^31 - 1 expected");
  }
}

void test_claims_of_experts() {
  const Setup good = accepted_experts();
  same(run(good), "", "the call that the others spoil");
  refuse_experts(claiming(good, kExpertIndex, kInt64, {6}), "index is [6], [tokens, experts of each] expected");
  refuse_experts(claiming(good, kExpertIndex, kInt64, {3, 2, 1}),
                 "index is [3, 2, 1], [tokens, experts of each] expected");
  for (const auto& [dims, text] : std::vector<std::pair<std::vector<int64_t>, std::string>>{
           {{-3, 2}, "[-3, 2]"},
           {{3, -2}, "[3, -2]"},
           {{int64_t{1} << 31, 1}, "[2147483648, 1]"},
           {{1 << 16, 1 << 15}, "[65536, 32768]"},
           {{INT64_MAX, INT64_MAX}, "[9223372036854775807, 9223372036854775807]"}}) {
    refuse_experts(claiming(good, kExpertIndex, kInt64, dims), "index is " + text + ", fewer than 2^31 pairs expected");
  }
  for (const auto& [dims, text] :
       std::vector<std::pair<std::vector<int64_t>, std::string>>{{{3, 127}, "[3, 127]"},
                                                                 {{2, 128}, "[2, 128]"},
                                                                 {{3, 1, 128}, "[3, 1, 128]"},
                                                                 {{3, 2, 64}, "[3, 2, 64]"},
                                                                 {{128}, "[128]"},
                                                                 {{}, "[]"}}) {
    refuse_experts(claiming(good, kExpertX, kFloat, dims),
                   "X is " + text + ", [3, 128] or [3, 2, 128] expected (index, K)");
  }
  const std::string of_w = ", [experts, 5, 2, 32] expected (experts, N, K/block_size, bytes of a block)";
  for (const auto& [dims, text] :
       std::vector<std::pair<std::vector<int64_t>, std::string>>{{{4, 5, 2, 64}, "[4, 5, 2, 64]"},
                                                                 {{4, 5, 1, 32}, "[4, 5, 1, 32]"},
                                                                 {{4, 6, 2, 32}, "[4, 6, 2, 32]"},
                                                                 {{-4, 5, 2, 32}, "[-4, 5, 2, 32]"},
                                                                 {{4, 5, 64}, "[4, 5, 64]"},
                                                                 {{}, "[]"}}) {
    refuse_experts(claiming(good, kExpertW, kUint8, dims), "W is " + text + of_w);
  }
  for (const auto& [dims, text] : std::vector<std::pair<std::vector<int64_t>, std::string>>{
           {{3, 5, 2}, "[3, 5, 2]"}, {{4, 5, 1}, "[4, 5, 1]"}, {{4, 4, 2}, "[4, 4, 2]"}, {{20, 2}, "[20, 2]"}}) {
    refuse_experts(claiming(good, kExpertScales, kFloat, dims),
                   "scales are " + text + ", [4, 5, 2] expected (experts, N, K/block_size)");
  }
  refuse_experts(claiming(good, kExpertX, kFloat16, {3, 128}), "X has element type 10, float32 expected");
  refuse_experts(claiming(good, kExpertIndex, kInt32, {3, 2}), "index has element type 6, int64 expected");
  refuse_experts(claiming(good, kExpertW, kFloat, {4, 5, 2, 32}), "W has element type 1, uint8 expected");
  refuse_experts(claiming(good, kExpertScales, kFloat16, {4, 5, 2}), "scales have element type 10, float32 expected");
  const char* missing[] = {"X is missing", "index is missing", "W is missing", "scales are missing"};
  for (size_t i = 0; i < kExpertInputs; ++i) {
    Setup left_out = good, ended = good;
    left_out.inputs[i].present = false;
    ended.inputs.resize(i);
    refuse_experts(run(left_out), missing[i]);
    refuse_experts(run(ended), missing[i]);
  }
}

// What only the contents tell.
void test_contents_for_experts() {
  for (int64_t wrong : {int64_t{4}, int64_t{-1}, INT64_MAX, INT64_MIN, int64_t{1} << 32}) {
    for (size_t place : {0, 5}) {
      Setup setup = accepted_experts();
      std::memcpy(setup.inputs[kExpertIndex].bytes.data() + 8 * place, &wrong, 8);
      refuse_experts(run(setup), "index holds " + std::to_string(wrong) + " at place " + std::to_string(place) +
                                     ", 0 to 3 expected");
    }
  }
  for (size_t at : {0, 127, 383}) {
    Setup setup = accepted_experts();
    std::memset(setup.inputs[kExpertX].bytes.data() + 4 * at, 0xFF, 4);
    refuse_experts(
        run(setup),
        "X holds NaN or infinity, which has no 8-bit code; look for the first layer whose output is not finite");
  }
  Setup none = accepted_experts();
  none.inputs[kExpertW] = {kUint8, {0, 5, 2, 32}, {}};
  none.inputs[kExpertScales] = {kFloat, {0, 5, 2}, {}};
  refuse_experts(run(none), "index holds 1 at place 0, 0 to -1 expected");
  Setup many = accepted_experts();
  many.info = {131072, 1, 0, 4, 64};
  many.inputs[kExpertX] = {kFloat, {(int64_t{1} << 31) - 1, 131072}, {}};
  many.inputs[kExpertIndex] = {kInt64, {(int64_t{1} << 31) - 1, 1}, {}};
  many.inputs[kExpertW] = {kUint8, {4, 1, 2048, 32}, {}};
  many.inputs[kExpertScales] = {kFloat, {4, 1, 2048}, {}};
  refuse_experts(run(many), "index has 2147483647 pairs, too many for one call");
  for (std::vector<int64_t> dims : {std::vector<int64_t>{0, 2}, {3, 0}}) {
    Setup empty = accepted_experts();
    empty.inputs[kExpertIndex] = {kInt64, dims, {}};
    empty.inputs[kExpertX].dims[0] = dims[0];
    std::vector<int64_t> shape;
    same(run(empty, "", nullptr, &shape), "", "no pairs");
    dims.push_back(5);
    check(shape == dims, "no pairs give an empty Y");
  }
}

// Every call of ONNX Runtime fails once.
void test_injected_failures_of_experts() {
  Setup setup = accepted_experts();
  fake::calls = 0;
  same(run(setup), "", "before failures are injected");
  const int calls = fake::calls;
  check(calls >= 25, "calls of ONNX Runtime are counted");
  const char* attributes[] = {"K", "N", "bits", "block_size"};
  for (int i = 0; i < calls; ++i) {
    fake::calls = 0, fake::fail_at = i;
    const std::string attribute = i < 4 ? attributes[i] : "";
    same(run(setup),
         i < 4 ? "ExpertMatMul: attribute " + attribute + " is missing or no integer; export the model again"
               : "injected failure",
         "experts, call " + std::to_string(i));
  }
  fake::fail_at = -1;
  here::free_fails = true;
  same(run(setup), "AllocatorFree failed", "memory cannot be given back");
  std::memset(setup.inputs[kExpertX].bytes.data(), 0xFF, 4);
  check(run(setup).find("X holds NaN") != std::string::npos, "the first error is the one told");
  here::free_fails = false;
}

void test_expert_refusals() {
  test_expert_attributes();
  test_claims_of_experts();
  test_contents_for_experts();
  test_injected_failures_of_experts();
}

// What the operator for one weight says of each pair.
std::vector<uint8_t> pair_by_pair(const Setup& setup, const std::string& isa) {
  const Input &x = setup.inputs[kExpertX], &index = setup.inputs[kExpertIndex], &w = setup.inputs[kExpertW];
  const size_t pairs = index.bytes.size() / 8, row = static_cast<size_t>(setup.info.k) * 4;
  const size_t each = x.bytes.size() == pairs * row ? 1 : static_cast<size_t>(index.dims[1]);
  const size_t experts = static_cast<size_t>(w.dims[0]);
  const auto part = [&](const Input& stack, size_t expert) {
    const size_t bytes = stack.bytes.size() / experts;
    Input one{stack.type, {stack.dims.begin() + 1, stack.dims.end()}, {}};
    const auto first = stack.bytes.begin() + static_cast<std::ptrdiff_t>(expert * bytes);
    one.bytes.assign(first, first + static_cast<std::ptrdiff_t>(bytes));
    return one;
  };
  std::vector<uint8_t> all;
  for (size_t p = 0; p < pairs; ++p) {
    const int64_t bits = setup.info.bits, block = setup.info.block_size;
    Setup one{bits == 2   ? kTernaryOp
              : bits == 4 ? kInt4Op
                          : kInt8BlockOp,
              false,
              {setup.info.k, setup.info.n, block},
              {}};
    one.info.block_size = block;
    const auto first = x.bytes.begin() + static_cast<std::ptrdiff_t>(p / each * row);
    one.inputs = {{kFloat, {1, setup.info.k}, {first, first + static_cast<std::ptrdiff_t>(row)}},
                  part(w, index.bytes[8 * p]),
                  part(setup.inputs[kExpertScales], index.bytes[8 * p])};
    std::vector<uint8_t> y;
    same(run(one, isa, &y, nullptr), "", "a pair alone");
    all.insert(all.end(), y.begin(), y.end());
  }
  return all;
}

// One token to more than a panel holds for one expert, experts that nothing goes to, and two rows of an index alike.
void test_expert_products(const std::string& isa) {
  uint32_t state = 1;
  for (const auto& [bits, block] : std::vector<std::array<int64_t, 2>>{{4, 16}, {4, 64}, {8, 32}, {8, 256}, {2, 128}}) {
    for (const auto& [tokens, each, n, k, experts] : std::vector<std::array<int64_t, 5>>{
             {1, 4, 45, 768, 9}, {5, 2, 70, 256, 3}, {40, 3, 33, 512, 5}, {150, 1, 17, 256, 1}, {60, 2, 40, 256, 40}}) {
      for (bool by_pair : {false, true}) {
        Setup setup{kExpertOp, false, {k, n, 0, bits, block}, {}};
        Input index{kInt64, {tokens, each}, std::vector<uint8_t>(static_cast<size_t>(tokens * each) * 8)};
        for (size_t p = 0; p < index.bytes.size(); p += 8) {
          state = state * 1664525 + 1013904223;
          index.bytes[p] = static_cast<uint8_t>((state >> 20) % static_cast<uint32_t>(experts) / 2 * 2);
        }
        Input w{kUint8, {experts, n, k / block, block * bits / 8}, {}};
        w.bytes.resize(static_cast<size_t>(experts * n * k * bits / 8));
        for (uint8_t& byte : w.bytes) {
          state = state * 1664525 + 1013904223;
          byte = static_cast<uint8_t>(state >> 24);
          if (bits == 2) byte &= static_cast<uint8_t>(~(byte >> 1 & 0x55));  // the code 3 does not occur
        }
        std::vector<int64_t> dims{tokens, k};
        if (by_pair) dims = {tokens, each, k};
        setup.inputs = {random_floats(dims, &state), index, w, random_floats({experts, n, k / block}, &state)};
        std::vector<uint8_t> alone, shared;
        std::vector<int64_t> shape;
        same(run(setup, isa, &alone, &shape), "", "experts, alone");
        here::threads = true;
        same(run(setup, isa, &shared, nullptr), "", "experts, in threads");
        here::threads = false;
        const std::string what =
            std::to_string(bits) + " bits, " + std::to_string(tokens) + " x " + std::to_string(each);
        check(shape == std::vector<int64_t>{tokens, each, n}, isa + ": experts, another shape, " + what);
        check(alone == shared, isa + ": experts, threads change bits, " + what);
        check(alone == pair_by_pair(setup, isa), isa + ": experts, other bits than each pair alone, " + what);
      }
    }
  }
}

Setup setup_of_experts(const GoldenCase& golden) {
  const auto attribute = [&](const char* name) { return static_cast<int64_t>(golden.attributes.at(name)); };
  Setup setup{kExpertOp, false, {attribute("K"), attribute("N"), 0, attribute("bits"), attribute("block_size")}, {}};
  for (const char* name : {"X", "index", "W", "scales"}) {
    const GoldenArray& array = golden.arrays.at(name);
    const ElementType type = array.dtype == "float32" ? kFloat : array.dtype == "int64" ? kInt64 : kUint8;
    setup.inputs.push_back({type, array.shape, array.bytes});
  }
  return setup;
}

}  // namespace
}  // namespace edgekit
