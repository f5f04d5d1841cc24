// libFuzzer on what a model or a caller can hand to ExpertMatMul, as fuzz_operator.cpp does it for the others: an error
// with a message, or the very bits that the scalar kernels give, and nothing is left over, also when any call fails.
#include "fuzz_source.h"

using namespace edgekit;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size) {
  Source source{bytes, size};
  const uint8_t choice = source.byte(), kind = source.byte();
  OrtKernelInfo info{source.number(), source.number(), 0};
  info.bits = choice & 1 ? 4 : choice & 2 ? 8 : choice & 4 ? 2 : source.number();
  info.block_size = info.bits == 2 ? 128 : kind < 250 ? 16 << kind % 5 : source.number();
  const bool sound = info.block_size > 0 && info.block_size <= 4096 && info.k > 0 && info.k < 4096;
  if (sound && choice & 8) info.k = (info.k + info.block_size - 1) / info.block_size * info.block_size;
  const int64_t block = sound ? info.block_size : 64, blocks = sound ? info.k / block : 1;
  const int64_t tokens = source.byte() % 40, each = source.byte() % 5, experts = source.byte() % 9;
  std::vector<int64_t> dims{tokens, info.k};
  if (choice & 16) dims = {tokens, each, info.k};
  OrtValue inputs[] = {
      tensor(source, kFloat, dims), tensor(source, kInt64, {tokens, each}),
      tensor(source, kUint8, {experts, info.n, blocks, info.bits > 0 && info.bits < 9 ? block * info.bits / 8 : 8}),
      tensor(source, kFloat, {experts, info.n, blocks})};
  const bool whole = std::all_of(std::begin(inputs), std::end(inputs), is_whole);
  if (whole && inputs[1].info.type == kInt64 && choice & 32 && experts > 0) {  // else most of them name no expert
    size_t count = 1;
    for (int64_t d : inputs[1].info.dims) count *= static_cast<size_t>(d);
    int64_t* index = static_cast<int64_t*>(inputs[1].data);
    for (size_t i = 0; i < count; ++i) index[i] = source.byte() % experts;
  }
  if (whole && info.n <= 4096) {
    std::string messages[2];
    std::vector<uint8_t> results[2];
    const size_t left = choice & 64 ? source.byte() % 5 : 4;
    const int fail_at = choice & 128 ? source.byte() % 48 : -1;
    for (int i = 0; i < 2; ++i) {
      OrtKernelContext context{{&inputs[0], &inputs[1], &inputs[2], &inputs[3]}, {}};
      context.inputs.resize(left);
      fake::calls = 0, fake::fail_at = fail_at;
      messages[i] = fake::run(operators(i ? "scalar" : "").ops[12], info, context);
      fake::fail_at = -1;
      size_t count = 4;
      for (int64_t d : context.output.info.dims) count *= static_cast<size_t>(d);
      if (context.output.data && messages[i].empty()) {
        const uint8_t* first = static_cast<uint8_t*>(context.output.data);
        results[i].assign(first, first + count);
      }
      std::free(context.output.data);
    }
    if (messages[0] != messages[1] || !same<uint32_t>(results[0], results[1], 0x7F800000)) {
      std::fprintf(stderr, "differs from scalar: '%s', '%s'\n", messages[0].c_str(), messages[1].c_str());
      std::abort();
    }
  }
  for (OrtValue& value : inputs) std::free(value.data);
  nothing_is_held();
  return 0;
}
