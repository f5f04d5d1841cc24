// Y = each row of X by the weight of the experts that it goes to. Pairs of a row and an expert are put in order of
// experts, so that each weight is read once, where it lies, and meets its rows together.
#include "experts.h"

#include "call.h"
#include "message.h"

namespace edgekit {
namespace {

struct ExpertCall {
  const Kernels& kernels;
  Format format;
  const ExpertArguments& a;
  int32_t zero;
  size_t stride;  // bytes from one row of codes to the next
  int8_t* codes;  // of each pair, in order of experts: its place is a slot
  float* steps;
  int32_t* corrections;
  uint32_t* slots;    // [pairs]
  uint32_t* pair_in;  // [slots]
  uint32_t* places;   // [experts]: first how many rows an expert has, then where its next one stands
  uint32_t* expert;   // [groups] of rows that go to one expert
  uint32_t* first;    // [groups + 1], their first slots
  size_t groups = 0;
  bool finite = true;

  size_t tiles() const { return parts(a.n, kPartRows); }
};

// Where each pair stands in order of experts. False at one that names no expert, whose place is then told.
bool group(ExpertCall& call, size_t* wrong) {
  const ExpertArguments& a = call.a;
  __builtin_memset(call.places, 0, a.experts * sizeof *call.places);
  for (size_t p = 0; p < a.pairs; ++p) {
    *wrong = p;
    if (a.index[p] < 0 || static_cast<uint64_t>(a.index[p]) >= a.experts) return false;
    ++call.places[a.index[p]];
  }
  uint32_t next = 0;
  for (size_t e = 0; e < a.experts; ++e) {
    const uint32_t count = call.places[e];
    call.places[e] = next;
    if (count == 0) continue;
    call.expert[call.groups] = static_cast<uint32_t>(e);
    call.first[call.groups++] = next;
    next += count;
  }
  call.first[call.groups] = next;
  for (size_t p = 0; p < a.pairs; ++p) {
    call.slots[p] = call.places[a.index[p]]++;
    call.pair_in[call.slots[p]] = static_cast<uint32_t>(p);
  }
  return true;
}

// Rounds a row of X to the slot of its first pair, and copies it to those of the others.
void round_row(void* data, size_t row) {
  ExpertCall& call = *static_cast<ExpertCall*>(data);
  const ExpertArguments& a = call.a;
  const size_t from = call.slots[row * a.each];
  if (!call.kernels.blocks->quantize(a.x + row * a.k, a.k, a.block, true, call.format, call.zero,
                                     call.codes + from * call.stride, call.steps + from * a.blocks,
                                     call.corrections + from * a.blocks)) {
    __atomic_store_n(&call.finite, false, __ATOMIC_RELAXED);
  }
  for (size_t i = 1; i < a.each; ++i) {
    const size_t to = call.slots[row * a.each + i];
    __builtin_memcpy(call.codes + to * call.stride, call.codes + from * call.stride, call.stride);
    __builtin_memcpy(call.steps + to * a.blocks, call.steps + from * a.blocks, a.blocks * sizeof(float));
    __builtin_memcpy(call.corrections + to * a.blocks, call.corrections + from * a.blocks, a.blocks * sizeof(int32_t));
  }
}

// Some rows of one expert's weight for all rows of X that go to it.
void expert_part(void* data, size_t part) {
  const ExpertCall& call = *static_cast<const ExpertCall*>(data);
  const ExpertArguments& a = call.a;
  size_t g = 0, end = call.groups;  // searched: 32-bit ARM has no division
  while (end - g > 1) {
    const size_t middle = g + (end - g) / 2;
    (middle * call.tiles() <= part ? g : end) = middle;
  }
  const size_t begin = (part - g * call.tiles()) * kPartRows, rows = smaller(kPartRows, a.n - begin);
  const size_t above = call.expert[g] * a.n;  // rows of the experts before it
  const BlockProduct product{call.format,
                             call.zero,
                             a.block,
                             a.blocks,
                             a.w + above * a.row_bytes,
                             a.row_bytes,
                             a.scales + above * a.blocks,
                             nullptr,
                             call.codes,
                             call.stride,
                             call.steps,
                             call.corrections};
  alignas(kAlignment) float y[kPartTokens * kPartRows];
  for (size_t slot = call.first[g]; slot < call.first[g + 1]; slot += kPartTokens) {
    const size_t tokens = smaller(kPartTokens, call.first[g + 1] - slot);
    multiply_rows(*call.kernels.blocks, product, a.n, begin, rows, slot, tokens, y);
    for (size_t t = 0; t < tokens; ++t) {
      float* to = a.y + call.pair_in[slot + t] * a.n + begin;
      __builtin_memcpy(to, y + t * kPartRows, rows * sizeof(float));
    }
  }
}

OrtStatus* run(const Api& api, const OrtKernelContext* context, ExpertCall& call) {
  const ExpertArguments& a = call.a;
  Message message;
  message << "ExpertMatMul: ";
  size_t wrong = 0;
  if (!group(call, &wrong)) {
    message << "index holds " << a.index[wrong] << " at place " << static_cast<int64_t>(wrong) << ", 0 to ";
    return api.error(kInvalidArgument, (message << static_cast<int64_t>(a.experts) - 1 << " expected").text());
  }
  if (OrtStatus* status = api.parallel_for(context, round_row, a.rows, round_batches(a.rows, a.k), &call))
    return status;
  if (!call.finite) {
    message << "X holds NaN or infinity, which has no 8-bit code; look for the first layer whose output is not finite";
    return api.error(kInvalidArgument, message.text());
  }
  const size_t read = call.groups < a.pairs / 4 ? a.pairs / 4 : call.groups;
  return api.parallel_for(context, expert_part, call.groups * call.tiles(), product_batches(read * a.n * a.row_bytes),
                          &call);
}

}  // namespace

OrtStatus* multiply_by_experts(const Api& api, const OrtKernelContext* context, OrtAllocator* allocator,
                               const Kernels& kernels, Format format, const ExpertArguments& a) {
  if (a.pairs == 0) return nullptr;
  const size_t stride = parts(a.k, kBlock) * kBlock + kAlignment;  // as in product.cpp
  const uint64_t each = uint64_t{stride} + a.blocks * (sizeof(float) + sizeof(int32_t)) + 2 * sizeof(uint32_t);
  if (each * a.pairs >= (sizeof(size_t) == 8 ? uint64_t{1} << 46 : uint64_t{1} << 30)) {
    Message message;
    message << "ExpertMatMul: index has " << static_cast<int64_t>(a.pairs) << " pairs, too many for one call";
    return api.error(kInvalidArgument, message.text());
  }
  const size_t most = smaller(a.experts, a.pairs), numbers = a.pairs * a.blocks;
  const size_t bytes = kAlignment + a.pairs * stride + 4 * (2 * numbers + 2 * a.pairs + a.experts + 2 * most + 1);
  void* memory = nullptr;
  if (OrtStatus* status = api.allocate(allocator, bytes, &memory)) return status;
  int8_t* codes = reinterpret_cast<int8_t*>(aligned(reinterpret_cast<size_t>(memory)));
  float* steps = reinterpret_cast<float*>(codes + a.pairs * stride);
  int32_t* corrections = reinterpret_cast<int32_t*>(steps + numbers);
  uint32_t* slots = reinterpret_cast<uint32_t*>(corrections + numbers);
  uint32_t* places = slots + 2 * a.pairs;
  uint32_t* expert = places + a.experts;
  ExpertCall call{kernels,      format,      a,     zero_of(kernels, format), stride, codes,
                  steps,        corrections, slots, slots + a.pairs,          places, expert,
                  expert + most};
  OrtStatus* status = run(api, context, call);
  OrtStatus* freed = api.free(allocator, memory);
  if (status == nullptr) return freed;
  if (freed != nullptr) api.release_status(freed);
  return status;
}

}  // namespace edgekit
