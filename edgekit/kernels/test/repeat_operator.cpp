// Computes one product so many times, for counting what it executes: the difference between runs of one and two times
// is one product. Arguments: a format, an instruction set or "", tokens, times. K is 512 and N 128.
#include <sys/auxv.h>

#include "operator_call.h"

namespace edgekit {
namespace {

constexpr int64_t kK = 512, kN = 128;

struct Weights {
  const char* name;
  Op op;
  int64_t block, bytes;  // codes and bytes of a block of W
  bool each;             // a scale for each block, not one for the matrix
  bool half = false;     // of float16
};

constexpr Weights kFormats[] = {{"ternary", kTernaryOp, 128, 32, false}, {"ternary-128", kTernaryOp, 128, 32, true},
                                {"int8", kInt8Op, 128, 128, false},      {"int4-64", kInt4Op, 64, 32, true},
                                {"int4-32", kInt4Op, 32, 16, true},      {"int4-fp16-32", kInt4Op, 32, 16, true, true},
                                {"int8-64", kInt8BlockOp, 64, 64, true}};

std::vector<uint8_t> floats(size_t count) {
  std::vector<uint8_t> bytes(4 * count);
  for (size_t i = 0; i < count; ++i) {
    const float value = static_cast<float>(i % 13) - 6.0f;
    std::memcpy(&bytes[4 * i], &value, 4);
  }
  return bytes;
}

Setup product(const Weights& format, int64_t tokens) {
  const int64_t blocks = kK / format.block;
  Setup setup{format.op, false, {kK, kN, 0}, {}};
  if (format.op >= kInt4Op) setup.info.block_size = format.block;
  const std::vector<int64_t> scales = format.each ? std::vector<int64_t>{kN, blocks} : std::vector<int64_t>{1};
  std::vector<uint8_t> codes(static_cast<size_t>(kN * blocks * format.bytes));
  for (size_t i = 0; i < codes.size(); ++i) codes[i] = format.op == kTernaryOp ? 0x61 : static_cast<uint8_t>(37 * i);
  setup.inputs = {{kFloat, {tokens, kK}, floats(static_cast<size_t>(tokens * kK))},
                  {kUint8, {kN, blocks, format.bytes}, codes},
                  {format.half ? kFloat16 : kFloat, scales, floats(static_cast<size_t>(format.each ? kN * blocks : 1))},
                  {kFloat, {kN}, floats(static_cast<size_t>(kN)), false}};
  if (format.half) setup.inputs[kScales].bytes.assign(static_cast<size_t>(2 * kN * blocks), 0x3C);
  return setup;
}

}  // namespace
}  // namespace edgekit

int main(int count, char** arguments) {
  using namespace edgekit;
  if (count != 5) return std::printf("usage: repeat_operator FORMAT ISA TOKENS TIMES\n"), 2;
  unsetenv("EDGEKIT_ISA");
  // Both are weak in the library: a static program has them because they are used here.
  if (std::getenv("EDGEKIT_ISA") != nullptr || getauxval(16) == 0) return 2;
  for (const Weights& format : kFormats) {
    if (std::strcmp(format.name, arguments[1]) != 0) continue;
    const std::string message =
        run(product(format, std::atoi(arguments[3])), arguments[2], nullptr, nullptr, std::atoi(arguments[4]));
    if (message.empty() && failures == 0) return 0;
    return std::printf("%s\n", message.c_str()), 1;
  }
  return std::printf("%s is no format\n", arguments[1]), 2;
}
