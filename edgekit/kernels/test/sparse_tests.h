// What test_operator.cpp tests of sparse weights: refusals, products, and every byte of a small W damaged.
#pragma once
#include <algorithm>

#include "half.h"
#include "operator_call.h"

namespace edgekit {
namespace {

// Sparse bytes of random weights, `percent` of them stored; places of rows first, as operators.md has it.
std::vector<uint8_t> sparse_bytes(size_t n, size_t k, size_t bits, uint32_t percent) {
  std::vector<uint8_t> bytes(4 * (n + 1));
  uint32_t state = 1;
  const auto draw = [&] { return state = state * 1664525 + 1013904223, state >> 16; };
  const size_t mask = (k + 127) / 128 * 16;
  for (size_t r = 0; r <= n; ++r) {
    const uint32_t place = static_cast<uint32_t>(bytes.size());
    std::memcpy(bytes.data() + 4 * r, &place, 4);
    if (r == n) break;
    bytes.resize(place + mask);
    size_t stored[2] = {0, 0};  // in the first and in the second halves of blocks
    for (size_t i = 0; i < k; ++i) {
      if (draw() % 100 >= percent) continue;
      bytes[place + i / 8] |= static_cast<uint8_t>(1 << i % 8);
      ++stored[i / 64 % 2];
    }
    const size_t codes = bits == 4 ? std::max(stored[0], stored[1]) : stored[0] + stored[1];
    for (size_t i = 0; i < codes; ++i) bytes.push_back(static_cast<uint8_t>(draw()));
  }
  bytes.resize(bytes.size() + 64);
  return bytes;
}

Setup accepted_sparse(int64_t bits, bool half, int64_t block) {
  Setup setup = accepted(false, half, block);
  setup.op = kSparseOp;
  setup.info.bits = bits;
  const std::vector<uint8_t> bytes = sparse_bytes(5, 130, static_cast<size_t>(bits), 25);
  setup.inputs[kW] = {kUint8, {static_cast<int64_t>(bytes.size())}, bytes};
  return setup;
}

void test_claims_of_sparse(int64_t bits, bool half) {
  const Setup good = accepted_sparse(bits, half, 0);
  const std::string op = "SparseMatMul: ";
  for (int64_t wrong : {int64_t{0}, int64_t{2}, int64_t{5}, int64_t{-8}, INT64_MAX}) {
    Setup setup = good;
    setup.info.bits = wrong;
    same(run(setup), op + "attribute bits is " + std::to_string(wrong) + ", 4 or 8 expected", "bits");
  }
  const std::string least = " bytes, at least 248 expected for 5 rows of 130, and fewer than 2^32";
  for (int64_t size : {int64_t{0}, int64_t{247}, int64_t{-1}, int64_t{1} << 32, INT64_MAX, INT64_MIN}) {
    same(claiming(good, kW, kUint8, {size}), op + "W has " + std::to_string(size) + least, "bytes of W");
  }
  same(claiming(good, kW, kUint8, {5, 64}), op + "W is [5, 64], one dimension expected (bytes)", "W of rank 2");
  same(claiming(good, kW, kUint8, {}), op + "W is [], one dimension expected (bytes)", "W of rank 0");
  same(claiming(good, kW, kFloat, {400}), op + "W has element type 1, uint8 expected", "float W");
  same(claiming(good, kScales, kFloat, {5, 2}), op + "scales are [5, 2], [1], [5] expected", "scales of blocks");
  Setup huge = good;
  huge.info.n = (int64_t{1} << 31) - 1;
  const std::string expected = op + "W has 400 bytes, at least 77309411360 expected for 2147483647 rows of 130";
  same(claiming(huge, kW, kUint8, {400}), expected + ", and fewer than 2^32", "rows beyond any memory");
}

// What is wrong with a sparse W by operators.md, counted weight by weight; nothing where its masks fit its codes.
std::string verdict(const std::vector<uint8_t>& bytes, size_t n, size_t k, size_t bits) {
  const auto place = [&](size_t r) {
    uint32_t at;
    std::memcpy(&at, bytes.data() + 4 * r, 4);
    return size_t{at};
  };
  const std::string end = "; the file is damaged, export or copy it again";
  const size_t begin = 4 * (n + 1), stop = bytes.size() - 64, blocks = (k + 127) / 128;
  if (place(0) != begin || place(n) != stop) {
    return "SparseMatMul: W says that its rows are bytes " + std::to_string(place(0)) + " to " +
           std::to_string(place(n)) + ", " + std::to_string(begin) + " to " + std::to_string(stop) + " expected" + end;
  }
  for (size_t r = 0; r < n; ++r) {
    size_t stored[2] = {0, 0};
    const bool inside =
        place(r) >= begin && place(r) <= place(r + 1) && place(r + 1) <= stop && place(r) + 16 * blocks <= place(r + 1);
    for (size_t i = 0; inside && i < 128 * blocks; ++i) stored[i / 64 % 2] += bytes[place(r) + i / 8] >> i % 8 & 1;
    const size_t codes = bits == 4 ? std::max(stored[0], stored[1]) : stored[0] + stored[1];
    if (!inside || place(r) + 16 * blocks + codes != place(r + 1)) {
      return "SparseMatMul: row " + std::to_string(r) + " of W has a mask that does not fit its codes" + end;
    }
  }
  return "";
}

// Every byte of a small W damaged in turn: the same result on every instruction set, and an error just where rows do
// not fit. Damage of a code is not seen; nothing is read outside, which sanitizers watch.
void test_damaged_sparse(int64_t bits, int64_t block, const std::vector<std::string>& supported) {
  for (size_t rows : {1, 2}) {
    Setup good = accepted_sparse(bits, false, block);
    good.inputs[kX].dims[0] = static_cast<int64_t>(rows);
    good.inputs[kX].bytes.resize(rows * 130 * 4);
    const std::vector<uint8_t>& bytes = good.inputs[kW].bytes;
    size_t refused = 0;
    for (size_t i = 0; i < bytes.size(); ++i) {
      for (uint8_t flip : {uint8_t{1}, uint8_t{0xFF}}) {
        Setup setup = good;
        setup.inputs[kW].bytes[i] ^= flip;
        std::vector<uint8_t> expected;
        const std::string message = run(setup, "scalar", &expected, nullptr);
        refused += !message.empty();
        same(message, verdict(setup.inputs[kW].bytes, 5, 130, static_cast<size_t>(bits)),
             "byte " + std::to_string(i) + " damaged");
        for (const std::string& isa : supported) {
          std::vector<uint8_t> y;
          same(run(setup, isa, &y, nullptr), message, isa + ", byte " + std::to_string(i) + " damaged");
          check(!message.empty() || y == expected, isa + ": other bits, byte " + std::to_string(i) + " damaged");
        }
      }
    }
    check(refused > 24 * 2, "damage is found");
  }
  Setup setup = accepted_sparse(bits, false, block);
  uint32_t place;
  std::memcpy(&place, setup.inputs[kW].bytes.data() + 4 * 3, 4);
  setup.inputs[kW].bytes[place] = 0xFF, setup.inputs[kW].bytes[place + 1] = 0xFF;
  same(run(setup),
       "SparseMatMul: row 3 of W has a mask that does not fit its codes; the file is damaged, export or copy it again",
       "which row");
  setup.inputs[kW].bytes[0] ^= 4;
  check(run(setup).find("SparseMatMul: W says that its rows are bytes 28 to ") == 0, "the first place");
}

void test_sparse_products(const std::string& isa) {
  for (int64_t bits : {4, 8}) {
    for (int64_t m : {1, 2, 33, 150}) {
      for (int64_t block : {0, 128}) {
        const int64_t k = m == 1 ? 9000 : 1300, n = m == 1 ? 201 : 45;  // more blocks than one call of sparse() takes
        const bool half = m == 2;
        const std::vector<uint8_t> bytes = sparse_bytes(static_cast<size_t>(n), static_cast<size_t>(k),
                                                        static_cast<size_t>(bits), bits == 4 ? 20 : 60);
        Input x{half ? kFloat16 : kFloat, {m, k}, std::vector<uint8_t>(static_cast<size_t>(m * k) * (half ? 2 : 4))};
        uint32_t state = 1;
        for (uint8_t& byte : x.bytes) state = state * 1664525 + 1013904223, byte = static_cast<uint8_t>(state >> 26);
        Setup setup{kSparseOp, half, {k, n, block, bits}, {}};
        const float scale = 0.25f;
        Input scales{kFloat, {1}, std::vector<uint8_t>(4)};
        std::memcpy(scales.bytes.data(), &scale, 4);
        setup.inputs = {x, {kUint8, {static_cast<int64_t>(bytes.size())}, bytes}, scales};
        std::vector<uint8_t> alone, shared, reference;
        same(run(setup, isa, &alone, nullptr), "", "sparse, alone");
        here::threads = true;
        same(run(setup, isa, &shared, nullptr), "", "sparse, in threads");
        here::threads = false;
        same(run(setup, "scalar", &reference, nullptr), "", "sparse, scalar");
        check(alone == shared && alone == reference, isa + ": sparse, other bits, " + std::to_string(m) + " rows");
      }
    }
  }
}

void test_sparse_refusals() {
  for (int64_t bits : {4, 8}) {
    for (bool half : {false, true}) {
      test_claims_of_sparse(bits, half);
      for (int64_t block : {0, 128}) {
        Setup setup = accepted_sparse(bits, half, block);
        same(run(setup), "", "the call that the others spoil");
        fake::calls = 0;
        run(setup);
        const int calls = fake::calls;
        for (int i = 0; i < calls; ++i) {
          fake::calls = 0, fake::fail_at = i;
          same(run(setup), of_failure(i, "SparseMatMul", 4, "bits"),
               "sparse, call " + std::to_string(i) + " of " + std::to_string(calls));
        }
        fake::fail_at = -1;
        setup.inputs.resize(1);
        same(run(setup), "SparseMatMul: W is missing", "only X");
      }
    }
  }
}

}  // namespace
}  // namespace edgekit
