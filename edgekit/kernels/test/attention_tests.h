// CachedAttention's kernels against the scalar ones, bit for bit, for test_kernels.cpp: keys, values and queries end
// where memory ends. A tile's rows are compared with the same rows one by one.
#pragma once
#include <algorithm>

namespace {

#if defined(__arm__)
// 32-bit ARM has no kernels for it: the function body runs there.
void test_attention(const Kernels& kernels) {
  check(kernels.attention == nullptr, kernels.name, "no attention on 32-bit ARM", 0, 0, 0);
}
#else

struct AttentionCall {
  size_t dim, blocks, rows, last;  // `last` positions in the last block
  int seeing;                      // 0: all; 1: up to a row's own; 2: and a window
  float softcap, sink;
  bool quiet;  // a score like the others, or far apart
};

struct Span {
  Fenced memory;
  size_t count;
  explicit Span(size_t floats) : memory(floats * sizeof(float)), count(floats) {}
  float* data() { return reinterpret_cast<float*>(memory.data()); }
  void fill(float width) {
    for (size_t i = 0; i < count; ++i) data()[i] = (static_cast<float>(draw()) / 1.1e9f - 1) * width;
  }
};

// What a row sees of a block.
void see(const AttentionCall& call, size_t block, size_t row, int32_t* lo, int32_t* hi) {
  const int32_t count = static_cast<int32_t>(block + 1 < call.blocks ? kPositions : call.last);
  const int32_t own = static_cast<int32_t>((call.blocks - 1) * kPositions + call.last - (call.rows - row) / 3);
  const int32_t begin = static_cast<int32_t>(block * kPositions);
  *hi = call.seeing == 0 ? count : std::max(0, std::min(count, own - begin));
  *lo = call.seeing < 2 ? 0 : std::min(*hi, std::max(0, own - 70 - begin));
}

// Every row alone by the scalar kernels.
void attend_one_by_one(const AttentionCall& call, Span& k, Span& v, Span& q, AttentionPart* states, float* y) {
  const AttentionKernels& scalar = kScalarAttention;
  std::vector<float> values(call.dim);
  for (size_t r = 0; r < call.rows; ++r) {
    for (size_t b = 0; b < call.blocks; ++b) {
      const size_t at = b * kPositions * call.dim, count = b + 1 < call.blocks ? kPositions : call.last;
      int32_t lo, hi;
      see(call, b, r, &lo, &hi);
      if (lo == hi) continue;
      AttentionPart part;
      scalar.few({k.data() + at, v.data() + at, call.dim, count, call.softcap}, q.data() + r * call.dim, 1, &lo, &hi,
                 &part, values.data());
      scalar.merge(part, values.data(), call.dim, &states[r], y + r * call.dim);
    }
  }
}

void attend_by_few(const AttentionKernels& kernels, const AttentionCall& call, Span& k, Span& v, Span& q,
                   AttentionPart* states, float* y) {
  for (size_t b = 0; b < call.blocks; ++b) {
    const size_t at = b * kPositions * call.dim, count = b + 1 < call.blocks ? kPositions : call.last;
    for (size_t row = 0; row < call.rows; row += kFewRows) {
      const size_t rows = std::min(kFewRows, call.rows - row);
      int32_t lo[kFewRows], hi[kFewRows];
      AttentionPart parts[kFewRows];
      Span values(rows * call.dim);
      for (size_t r = 0; r < rows; ++r) see(call, b, row + r, lo + r, hi + r);
      kernels.few({k.data() + at, v.data() + at, call.dim, count, call.softcap}, q.data() + row * call.dim, rows, lo,
                  hi, parts, values.data());
      for (size_t r = 0; r < rows; ++r) {
        if (lo[r] == hi[r]) continue;
        kernels.merge(parts[r], values.data() + r * call.dim, call.dim, &states[row + r], y + (row + r) * call.dim);
      }
    }
  }
}

void attend_by_tile(const AttentionKernels& kernels, const AttentionCall& call, Span& k, Span& v, Span& q,
                    AttentionPart* states, float* y) {
  const size_t width = kernels.width;
  Span columns(call.dim * width);
  alignas(64) float weights[kPositions * kMostAttentionRows], most[kMostAttentionRows], sum[kMostAttentionRows];
  alignas(64) int32_t lo[kMostAttentionRows] = {}, hi[kMostAttentionRows] = {};
  for (size_t row = 0; row < call.rows; row += width) {
    const size_t rows = std::min(width, call.rows - row);
    std::vector<float*> at_y;
    for (size_t r = 0; r < width; ++r) {
      most[r] = states[std::min(row + r, call.rows - 1)].most, sum[r] = states[std::min(row + r, call.rows - 1)].sum;
      if (r < rows) at_y.push_back(y + (row + r) * call.dim);
      for (size_t d = 0; d < call.dim; ++d) {
        columns.data()[d * width + r] = r < rows ? q.data()[(row + r) * call.dim + d] : 0;
      }
    }
    std::fill(lo, lo + width, 0), std::fill(hi, hi + width, 0);
    for (size_t b = 0; b < call.blocks; ++b) {
      const size_t at = b * kPositions * call.dim, count = b + 1 < call.blocks ? kPositions : call.last;
      for (size_t r = 0; r < rows; ++r) see(call, b, row + r, lo + r, hi + r);
      kernels.tile({k.data() + at, v.data() + at, call.dim, count, call.softcap},
                   {columns.data(), rows, most, sum, at_y.data(), weights, lo, hi});
    }
    for (size_t r = 0; r < rows; ++r) states[row + r] = {most[r], sum[r]};
  }
}

void test_attention_call(const Kernels& all, const AttentionCall& call) {
  const AttentionKernels& kernels = call.dim % all.attention->head_step ? *all.attention->narrow : *all.attention;
  const size_t positions = (call.blocks - 1) * kPositions + call.last;
  Span k(positions * call.dim), v(positions * call.dim), q(call.rows * call.dim);
  k.fill(call.quiet ? 0.2f : 4), v.fill(1), q.fill(call.quiet ? 0.2f : 4);
  const AttentionPart initial = {call.sink, call.sink > -1e30f ? 1.0f : 0.0f};
  std::vector<AttentionPart> expected(call.rows, initial), few(expected), tiles(expected);
  Span expected_y(call.rows * call.dim), few_y(call.rows * call.dim), tiles_y(call.rows * call.dim);
  attend_one_by_one(call, k, v, q, expected.data(), expected_y.data());
  attend_by_few(kernels, call, k, v, q, few.data(), few_y.data());
  attend_by_tile(kernels, call, k, v, q, tiles.data(), tiles_y.data());
  const size_t bytes = call.rows * call.dim * sizeof(float), state = call.rows * sizeof(AttentionPart);
  bool ok = !std::memcmp(expected_y.data(), few_y.data(), bytes) && !std::memcmp(expected.data(), few.data(), state);
  check(ok, all.name, "attention of few rows", call.dim, call.rows, positions);
  ok = !std::memcmp(expected_y.data(), tiles_y.data(), bytes) && !std::memcmp(expected.data(), tiles.data(), state);
  check(ok, all.name, "attention of tiles", call.dim, call.rows, positions);
}

void test_rotate(const Kernels& all, size_t dim, size_t half, bool interleaved) {
  Span x(dim), cos(half), sin(half), y(dim), expected(dim);
  x.fill(3), cos.fill(1), sin.fill(1);
  kScalarAttention.rotate(x.data(), dim, cos.data(), sin.data(), half, interleaved, 0.3f, expected.data());
  all.attention->rotate(x.data(), dim, cos.data(), sin.data(), half, interleaved, 0.3f, y.data());
  check(std::memcmp(expected.data(), y.data(), dim * sizeof(float)) == 0, all.name, "rotation", dim, half, interleaved);
}

void test_attention(const Kernels& kernels) {
  static std::vector<const AttentionKernels*> tested;  // several instruction sets share a table
  const bool again = std::find(tested.begin(), tested.end(), kernels.attention) != tested.end();
  if (kernels.attention == nullptr || again) return;
  tested.push_back(kernels.attention);
  const float none = -__builtin_inff();
  for (size_t dim : {8, 16, 24, 64, 72, 128}) {
    for (bool interleaved : {false, true}) {
      test_rotate(kernels, dim, dim / 2, interleaved);
      test_rotate(kernels, dim, 3, interleaved);
      test_rotate(kernels, dim, 0, interleaved);
    }
    for (size_t rows : {1, 2, 3, 4, 7, 17, 33}) {
      const int seeing = static_cast<int>((rows + dim / 8) % 3);
      test_attention_call(kernels, {dim, 1, rows, 12, 1, 0, none, true});
      test_attention_call(kernels, {dim, 2, rows, 64, seeing, 0, rows % 2 ? none : 1.0f, rows > 3});
      test_attention_call(kernels, {dim, 3, rows, 29, seeing, dim == 64 ? 0.0f : 5.0f, none, false});
    }
  }
}

#endif

}  // namespace
