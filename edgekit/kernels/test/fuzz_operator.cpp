// libFuzzer on what a model or a caller can hand to the operators. Whatever the bytes say, the outcome is an error with
// a message or the very bits that the scalar kernels give (or NaN where they give NaN), and nothing is left over; also
// when any call of ONNX Runtime fails.
#include "fuzz_source.h"

using namespace edgekit;

namespace {

// W of a SparseMatMul: sound as a writer makes it, and then with some bytes changed.
OrtValue sparse(Source& source, int64_t n, int64_t k, int64_t bits) {
  const bool sound = n > 0 && n < 200 && k > 0 && k < 3000;
  const size_t rows = sound ? static_cast<size_t>(n) : 1, columns = sound ? static_cast<size_t>(k) : 1;
  std::vector<uint8_t> bytes(4 * (rows + 1));
  const uint8_t density = source.byte(), seed = source.byte();
  uint32_t state = seed;
  const auto draw = [&] { return state = state * 1664525 + 1013904223, state >> 20; };
  for (size_t r = 0; r <= rows; ++r) {
    const uint32_t place = static_cast<uint32_t>(bytes.size());
    std::memcpy(bytes.data() + 4 * r, &place, 4);
    if (r == rows) break;
    bytes.resize(place + (columns + 127) / 128 * 16);
    size_t stored[2] = {0, 0};  // in the first and in the second halves of blocks
    for (size_t i = 0; i < columns; ++i) {
      if (draw() % 256 >= density) continue;
      bytes[place + i / 8] |= static_cast<uint8_t>(1 << i % 8);
      ++stored[i / 64 % 2];
    }
    const size_t codes = bits == 4 ? std::max(stored[0], stored[1]) : stored[0] + stored[1];
    for (size_t i = 0; i < codes; ++i) bytes.push_back(static_cast<uint8_t>(draw()));
  }
  bytes.resize(bytes.size() + 64);
  for (uint8_t changes = source.byte() % 4; changes > 0; --changes) {
    const size_t at = source.byte() | static_cast<size_t>(source.byte()) << 8;
    bytes[at % bytes.size()] ^= source.byte();
  }
  OrtValue value{{kUint8, {static_cast<int64_t>(bytes.size())}}, std::malloc(bytes.size())};
  std::memcpy(value.data, bytes.data(), bytes.size());
  return value;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size) {
  Source source{bytes, size};
  const uint8_t choice = source.byte();
  const bool int8 = choice & 1, half = choice & 2, bias = choice & 4;
  OrtKernelInfo info{source.number(), source.number(), choice & 8 ? 128 : choice & 16 ? source.number() : 0};
  const uint8_t kind = source.byte();
  const bool is_sparse = kind % 3 == 0, blocks_scaled = kind % 3 == 1;  // then int8 says of how many bits
  info.bits = kind < 120 ? 4 : kind < 250 ? 8 : source.number();
  info.block_size = kind < 250 ? 16 << kind / 3 % 5 : source.number();
  if (blocks_scaled && choice & 8) info.block = info.block_size;
  const int64_t block = blocks_scaled && info.block_size > 0 ? info.block_size : 128;
  const int64_t blocks = info.k > 0 && info.k < (int64_t{1} << 40) ? (info.k + block - 1) / block : 1;
  const int64_t m = source.byte() % 40;
  const bool half_scales = blocks_scaled && !int8 && kind % 2;
  const uint8_t scales = blocks_scaled ? 2 : source.byte() % 3;
  std::vector<int64_t> scale_dims{scales == 0 ? 1 : info.n};
  if (scales == 2) scale_dims.push_back(blocks);
  OrtValue inputs[] = {tensor(source, half ? kFloat16 : kFloat, {m, info.k}),
                       is_sparse && kind % 8 ? sparse(source, info.n, info.k, info.bits)
                                             : tensor(source, kUint8,
                                                      {info.n, blocks,
                                                       blocks_scaled ? (int8 ? block : block / 2)
                                                       : int8        ? 128
                                                                     : 32}),
                       tensor(source, half_scales ? kFloat16 : kFloat, scale_dims), tensor(source, kFloat, {info.n})};
  if (std::all_of(std::begin(inputs), std::end(inputs), is_whole) && info.n <= 4096) {
    std::string messages[2];
    std::vector<uint8_t> results[2];
    for (int i = 0; i < 2; ++i) {
      OrtKernelContext context{{&inputs[0], &inputs[1], &inputs[2]}, {}};
      if (bias) context.inputs.push_back(choice & 32 ? nullptr : &inputs[3]);
      if (choice & 64) context.inputs.resize(source.byte() % 5, nullptr);
      const OrtCustomOp* op = operators(i ? "scalar" : "")
                                  .ops[(is_sparse       ? 4
                                        : blocks_scaled ? (int8 ? 8 : 6)
                                        : int8          ? 2
                                                        : 0) +
                                       (half ? 1 : 0)];
      fake::calls = 0;
      fake::fail_at = choice & 128 ? source.byte() % 48 : -1;
      messages[i] = fake::run(op, info, context);
      fake::fail_at = -1;
      size_t count = half ? 2 : 4;
      for (int64_t d : context.output.info.dims) count *= static_cast<size_t>(d);
      if (context.output.data && messages[i].empty()) {
        const uint8_t* first = static_cast<uint8_t*>(context.output.data);
        results[i].assign(first, first + count);
      }
      std::free(context.output.data);
    }
    const bool failing = choice & 128 || choice & 64;
    const bool equal =
        half ? same<uint16_t>(results[0], results[1], 0x7C00) : same<uint32_t>(results[0], results[1], 0x7F800000);
    if (!failing && (messages[0] != messages[1] || !equal)) {
      std::fprintf(stderr, "differs from scalar: '%s', '%s'\n", messages[0].c_str(), messages[1].c_str());
      std::abort();
    }
  }
  for (OrtValue& value : inputs) std::free(value.data);
  nothing_is_held();
  return 0;
}
