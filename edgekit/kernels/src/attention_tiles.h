// CachedAttention's arithmetic for any width of registers. Included between the EK_TARGET lines of a file that defines
// EK_LANES (4, 8 or 16) and, in edgekit's unnamed namespace, `V`, a vector of so many floats, `fused(a, b, c)`, a * b +
// c rounded once, for V and for float, kTileKeys and kTileColumns: rows and vectors of a register tile.
namespace edgekit {
namespace {

constexpr size_t W = EK_LANES, kWidth = W * kTileColumns;
constexpr size_t kLanes = 8;  // of every sum
typedef float Loose __attribute__((vector_size(4 * EK_LANES), aligned(4), may_alias));
typedef int32_t VI __attribute__((vector_size(4 * EK_LANES)));
typedef uint32_t VU __attribute__((vector_size(4 * EK_LANES)));

inline V load(const float* p) { return *reinterpret_cast<const Loose*>(p); }
inline void store(float* p, V x) { *reinterpret_cast<Loose*>(p) = x; }
inline V splat(float x) { return x - V{}; }  // x - 0 is x, also of -0
inline VI splat(int32_t x) { return x - VI{}; }
inline V larger(V a, V b) { return a > b ? a : b; }
inline float larger(float a, float b) { return a > b ? a : b; }

// exp(x) for x <= 0: 2^n times a polynomial of the rest (Cephes' expf); 0 below -87, where 2^n ends.
template <class T, class Int>
inline T exp_of(T x) {
  const T turned = fused(x, T{} + 1.44269504f, T{} + 12582912.0f);
  const T n = turned - 12582912.0f;
  T r = fused(n, T{} - 0.693359375f, x);
  r = fused(n, T{} + 2.12194440e-4f, r);
  T y = T{} + 1.9875691500e-4f;
  y = fused(y, r, T{} + 1.3981999507e-3f);
  y = fused(y, r, T{} + 8.3334519073e-3f);
  y = fused(y, r, T{} + 4.1665795894e-2f);
  y = fused(y, r, T{} + 1.6666665459e-1f);
  y = fused(y, r, T{} + 5.0000001201e-1f);
  y = fused(y, r * r, r) + 1.0f;
  Int bits;
  __builtin_memcpy(&bits, &turned, sizeof bits);
  bits = (bits - 0x4B400000 + 127) << 23;
  T power;
  __builtin_memcpy(&power, &bits, sizeof power);
  return x < T{} - 87.0f ? T{} : y * power;
}
inline V exp_of(V x) { return exp_of<V, VU>(x); }
inline float exp_of(float x) { return exp_of<float, uint32_t>(x); }

// cap * tanh(x / cap), tanh by exp.
inline V capped(V x, float cap) {
  const V z = x * (1.0f / cap);
  const V e = exp_of((z < V{} ? z : -z) * 2.0f);
  const V tanh = (1.0f - e) / (1.0f + e);
  return (z < V{} ? -tanh : tanh) * cap;
}

inline float fold(const float* a) { return ((a[0] + a[4]) + (a[2] + a[6])) + ((a[1] + a[5]) + (a[3] + a[7])); }

void rotate(const float* x, size_t dim, const float* cos, const float* sin, size_t half, bool interleaved, float scale,
            float* y) {
  for (size_t i = 0; i < half; ++i) {
    const size_t first = interleaved ? 2 * i : i, second = interleaved ? 2 * i + 1 : i + half;
    const float a = x[first], b = x[second];
    y[first] = fused(a, cos[i], -(b * sin[i])) * scale;
    y[second] = fused(b, cos[i], a * sin[i]) * scale;
  }
  for (size_t i = 2 * half; i < dim; ++i) y[i] = x[i] * scale;
}

// acc[r][c] += the sum over positions from `lo` to `hi` of weight r times the values' columns.
template <size_t R, size_t N>
inline void add_values(V (*acc)[N], const float* weights, size_t row, size_t step, const float* v, size_t dim,
                       size_t lo, size_t hi) {
  for (size_t j = lo; j < hi; ++j) {
    V x[N];
#pragma GCC unroll 8
    for (size_t c = 0; c < N; ++c) x[c] = load(v + j * dim + c * W);
#pragma GCC unroll 8
    for (size_t r = 0; r < R; ++r) {
      const V p = splat(weights[r * row + j * step]);
#pragma GCC unroll 8
      for (size_t c = 0; c < N; ++c) acc[r][c] = fused(p, x[c], acc[r][c]);
    }
  }
}

// The same for rows that see different positions: a row alone before and behind those that all see. A function of its
// own, and sums in memory: it is for the few blocks at an edge.
template <size_t R, size_t N>
__attribute__((noinline)) void add_ragged_values(V (*acc)[N], const float* weights, size_t row, size_t step,
                                                 const float* v, size_t dim, const int32_t* lo, const int32_t* hi) {
  int32_t first = lo[0], last = hi[0];
  for (size_t r = 1; r < R; ++r) {
    first = lo[r] > first ? lo[r] : first;
    last = hi[r] < last ? hi[r] : last;
  }
  if (last <= first) first = last = kPositions;  // none: every row is read to its end before them
  for (size_t r = 0; r < R; ++r) {
    const size_t end = static_cast<size_t>(hi[r] < first ? hi[r] : first);
    add_values<1, N>(acc + r, weights + r * row, row, step, v, dim, static_cast<size_t>(lo[r]), end);
  }
  add_values<R, N>(acc, weights, row, step, v, dim, static_cast<size_t>(first), static_cast<size_t>(last));
  for (size_t r = 0; r < R; ++r) {
    add_values<1, N>(acc + r, weights + r * row, row, step, v, dim, static_cast<size_t>(last),
                     static_cast<size_t>(hi[r]));
  }
}

template <size_t R, size_t N>
inline void add_seen_values(V (*acc)[N], const float* weights, size_t row, size_t step, const float* v, size_t dim,
                            const int32_t* lo, const int32_t* hi) {
  bool same = true;
  for (size_t r = 1; r < R; ++r) same = same && lo[r] == lo[0] && hi[r] == hi[0];
  if (same) {
    return add_values<R, N>(acc, weights, row, step, v, dim, static_cast<size_t>(lo[0]), static_cast<size_t>(hi[0]));
  }
  V sums[R][N] = {};
  add_ragged_values<R, N>(sums, weights, row, step, v, dim, lo, hi);
#pragma GCC unroll 8
  for (size_t r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (size_t c = 0; c < N; ++c) acc[r][c] = sums[r][c];
  }
}

inline size_t least(size_t a, size_t b) { return a < b ? a : b; }

// Asks for memory that is read soon: few rows take less time than their keys and values need to come.
inline void prefetch(const float* p, size_t floats) {
  for (size_t i = 0; i < floats; i += 16) __builtin_prefetch(p + i, 0, 2);
}

#if EK_LANES == 16
typedef float Half __attribute__((vector_size(32), aligned(4), may_alias));
// Lanes of two keys, and of one query twice.
inline V of_keys(const float* a, const float* b) {
  const Half x = *reinterpret_cast<const Half*>(a), y = *reinterpret_cast<const Half*>(b);
  return __builtin_shufflevector(x, y, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
}
inline V of_query(const float* q) { return of_keys(q, q); }
// Four vectors of two keys each -> the lanes' sums by 2, key by key in each quarter.
inline V by_two(const V* a) {
  const V x = __builtin_shufflevector(a[0], a[1], 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27) +
              __builtin_shufflevector(a[0], a[1], 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
  const V y = __builtin_shufflevector(a[2], a[3], 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27) +
              __builtin_shufflevector(a[2], a[3], 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
  return __builtin_shufflevector(x, y, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29) +
         __builtin_shufflevector(x, y, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
}
inline V by_one(V x, V y) {
  return __builtin_shufflevector(x, y, 0, 2, 16, 18, 4, 6, 20, 22, 8, 10, 24, 26, 12, 14, 28, 30) +
         __builtin_shufflevector(x, y, 1, 3, 17, 19, 5, 7, 21, 23, 9, 11, 25, 27, 13, 15, 29, 31);
}
constexpr size_t kVectors = 4, kScored = 16;  // vectors of keys at once; keys of a vector of scores
// Keys of vector i of the first half; those of the second are 2 more.
inline V keys_of(const float* const* k, size_t half, size_t i, size_t d) {
  const size_t at = 2 * half + i / 2 + 8 * (i % 2);
  return of_keys(k[at] + d, k[at + 4] + d);
}
#elif EK_LANES == 8
inline V of_query(const float* q) { return load(q); }
inline V by_two(const V* a) {
  const V x = __builtin_shufflevector(a[0], a[1], 0, 1, 2, 3, 8, 9, 10, 11) +
              __builtin_shufflevector(a[0], a[1], 4, 5, 6, 7, 12, 13, 14, 15);
  const V y = __builtin_shufflevector(a[2], a[3], 0, 1, 2, 3, 8, 9, 10, 11) +
              __builtin_shufflevector(a[2], a[3], 4, 5, 6, 7, 12, 13, 14, 15);
  return __builtin_shufflevector(x, y, 0, 1, 8, 9, 4, 5, 12, 13) +
         __builtin_shufflevector(x, y, 2, 3, 10, 11, 6, 7, 14, 15);
}
inline V by_one(V x, V y) {
  return __builtin_shufflevector(x, y, 0, 2, 8, 10, 4, 6, 12, 14) +
         __builtin_shufflevector(x, y, 1, 3, 9, 11, 5, 7, 13, 15);
}
constexpr size_t kVectors = 4, kScored = 8;
inline V keys_of(const float* const* k, size_t half, size_t i, size_t d) {
  return load(k[2 * half + i / 2 + 4 * (i % 2)] + d);
}
#else
// Each key has two vectors, of its first and of its last four lanes.
inline V by_two(const V* a) {
  const V x = a[0] + a[1], y = a[2] + a[3];
  return __builtin_shufflevector(x, y, 0, 1, 4, 5) + __builtin_shufflevector(x, y, 2, 3, 6, 7);
}
inline V by_one(V x, V y) {
  return __builtin_shufflevector(x, y, 0, 2, 4, 6) + __builtin_shufflevector(x, y, 1, 3, 5, 7);
}
constexpr size_t kVectors = 4, kScored = 4;
inline V keys_of(const float* const* k, size_t half, size_t i, size_t d) {
  return load(k[2 * half + i / 2] + d + 4 * (i % 2));
}
#endif

// Scores of kScored keys for R rows, lanes along the head.
template <size_t R>
inline void score_keys(const float* const* k, const float* q, size_t dim, float* scores) {
  V sums[2][R];
#pragma GCC unroll 2
  for (size_t half = 0; half < 2; ++half) {
    V acc[R][kVectors] = {};
    for (size_t d = 0; d < dim; d += kLanes) {
      V x[kVectors];
#pragma GCC unroll 4
      for (size_t i = 0; i < kVectors; ++i) x[i] = keys_of(k, half, i, d);
#pragma GCC unroll 4
      for (size_t r = 0; r < R; ++r) {
#if EK_LANES == 4
        const V a = load(q + r * dim + d), b = load(q + r * dim + d + 4);
#pragma GCC unroll 4
        for (size_t i = 0; i < kVectors; ++i) acc[r][i] = fused(i % 2 ? b : a, x[i], acc[r][i]);
#else
        const V a = of_query(q + r * dim + d);
#pragma GCC unroll 4
        for (size_t i = 0; i < kVectors; ++i) acc[r][i] = fused(a, x[i], acc[r][i]);
#endif
      }
    }
#pragma GCC unroll 4
    for (size_t r = 0; r < R; ++r) sums[half][r] = by_two(acc[r]);
  }
#pragma GCC unroll 4
  for (size_t r = 0; r < R; ++r) store(scores + r * kPositions, by_one(sums[0][r], sums[1][r]));
}

// Scores -> weights and their sum; the positions that the row does not see become 0.
inline AttentionPart soften(float* s, size_t lo, size_t hi, float softcap) {
  if (softcap != 0) {
    for (size_t j = 0; j < kPositions; j += W) store(s + j, capped(load(s + j), softcap));
  }
  float largest = s[lo];
  for (size_t j = lo; j < hi; ++j) largest = larger(largest, s[j]);
  for (size_t j = 0; j < kPositions; j += W) store(s + j, exp_of(load(s + j) - largest));
  for (size_t j = 0; j < lo; ++j) s[j] = 0;
  for (size_t j = hi; j < kPositions; ++j) s[j] = 0;
  float lanes[kLanes] = {};
  for (size_t j = 0; j < kPositions; j += kLanes) {
    for (size_t i = 0; i < kLanes; ++i) lanes[i] += s[j + i];
  }
  return {largest, fold(lanes)};
}

template <size_t R, size_t N>
inline void few_columns(const AttentionBlock& block, const float* weights, const int32_t* lo, const int32_t* hi,
                        size_t d, float* y) {
  V acc[R][N] = {};
  add_seen_values<R, N>(acc, weights, kPositions, 1, block.v + d, block.dim, lo, hi);
#pragma GCC unroll 4
  for (size_t r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (size_t c = 0; c < N; ++c) store(y + r * block.dim + d + c * W, acc[r][c]);
  }
}

template <size_t R>
void few_rows(const AttentionBlock& block, const float* q, const int32_t* lo, const int32_t* hi, AttentionPart* out,
              float* y) {
  alignas(64) float scores[R * kPositions];
  for (size_t j = 0; j < kPositions; j += kScored) {
    if (j >= block.count) {
      for (size_t r = 0; r < R; ++r) {
        for (size_t i = 0; i < kScored; ++i) scores[r * kPositions + j + i] = 0;
      }
      continue;
    }
    const float* k[kScored];
    for (size_t i = 0; i < kScored; ++i) k[i] = block.k + least(j + i, block.count - 1) * block.dim;
    prefetch(block.k + (kPositions + j) * block.dim, kScored * block.dim);
    prefetch(block.v + j * block.dim, kScored * block.dim);  // read when all scores are there
    score_keys<R>(k, q, block.dim, scores + j);
  }
  for (size_t r = 0; r < R; ++r) {
    if (lo[r] < hi[r]) {
      out[r] = soften(scores + r * kPositions, static_cast<size_t>(lo[r]), static_cast<size_t>(hi[r]), block.softcap);
    }
  }
  size_t d = 0;
  for (; d + 4 * W <= block.dim; d += 4 * W) few_columns<R, 4>(block, scores, lo, hi, d, y);
  for (; d < block.dim; d += W) few_columns<R, 1>(block, scores, lo, hi, d, y);
}

void few(const AttentionBlock& block, const float* q, size_t rows, const int32_t* lo, const int32_t* hi,
         AttentionPart* out, float* y) {
#if EK_LANES == 16
  if (rows == 4) return few_rows<4>(block, q, lo, hi, out, y);
  if (rows == 3) return few_rows<3>(block, q, lo, hi, out, y);
#endif
  for (; rows > 1; rows -= 2) {
    few_rows<2>(block, q, lo, hi, out, y);
    q += 2 * block.dim, y += 2 * block.dim, lo += 2, hi += 2, out += 2;
  }
  if (rows) few_rows<1>(block, q, lo, hi, out, y);
}

void merge(const AttentionPart& part, const float* values, size_t dim, AttentionPart* state, float* y) {
  const float most = larger(state->most, part.most);
  const float before = exp_of(state->most - most), own = exp_of(part.most - most);
  for (size_t d = 0; d < dim; d += W) store(y + d, fused(load(values + d), splat(own), load(y + d) * before));
  *state = {most, fused(part.sum, own, state->sum * before)};
}

// weights[j][column] = the score of key j, for kTileKeys keys; lanes of a sum one after the other, put together as
// fold() does it.
inline void tile_scores(const float* const* k, const float* q, size_t dim, float* scores) {
  constexpr size_t kOrder[kLanes] = {0, 4, 2, 6, 1, 5, 3, 7};
  V kept[3][kTileKeys][kTileColumns];
  for (size_t step = 0; step < kLanes; ++step) {
    V acc[kTileKeys][kTileColumns] = {};
    for (size_t d = kOrder[step]; d < dim; d += kLanes) {
      V x[kTileColumns];
#pragma GCC unroll 4
      for (size_t c = 0; c < kTileColumns; ++c) x[c] = load(q + d * kWidth + c * W);
#pragma GCC unroll 8
      for (size_t r = 0; r < kTileKeys; ++r) {
        const V a = splat(k[r][d]);
#pragma GCC unroll 4
        for (size_t c = 0; c < kTileColumns; ++c) acc[r][c] = fused(a, x[c], acc[r][c]);
      }
    }
#pragma GCC unroll 8
    for (size_t r = 0; r < kTileKeys; ++r) {
#pragma GCC unroll 4
      for (size_t c = 0; c < kTileColumns; ++c) {
        V& sum = kept[step < 2 ? 0 : step < 6 ? 1 : 2][r][c];
        sum = step % 2 ? sum + acc[r][c] : acc[r][c];
        if (step == 7) kept[1][r][c] += sum;
        if (step == 3 || step == 7) kept[0][r][c] += kept[1][r][c];
      }
    }
  }
#pragma GCC unroll 8
  for (size_t r = 0; r < kTileKeys; ++r) {
#pragma GCC unroll 4
    for (size_t c = 0; c < kTileColumns; ++c) store(scores + r * kWidth + c * W, kept[0][r][c]);
  }
}

// Scores -> weights for a vector of rows, their state, and what older and new sums are multiplied by.
inline void soften_columns(const AttentionBlock& block, const AttentionTile& tile, bool all, size_t c, float* before,
                           float* own) {
  float* s = tile.weights + c * W;
  const VI lo = *reinterpret_cast<const VI*>(tile.lo + c * W), hi = *reinterpret_cast<const VI*>(tile.hi + c * W);
  const V none = splat(-__builtin_inff());
  V most = none;
  for (size_t j = 0; j < block.count; ++j) {
    V x = load(s + j * kWidth);
    if (block.softcap != 0) x = capped(x, block.softcap), store(s + j * kWidth, x);
    const VI at = splat(static_cast<int32_t>(j));
    if (!all) x = ((at >= lo) & (at < hi)) ? x : none;
    most = larger(most, x);
  }
  V lanes[kLanes] = {};
  for (size_t j = 0; j < block.count; ++j) {
    V p = exp_of(load(s + j * kWidth) - most);
    const VI at = splat(static_cast<int32_t>(j));
    if (!all) p = ((at >= lo) & (at < hi)) ? p : V{};
    store(s + j * kWidth, p);
    lanes[j % kLanes] += p;
  }
  const V sum = ((lanes[0] + lanes[4]) + (lanes[2] + lanes[6])) + ((lanes[1] + lanes[5]) + (lanes[3] + lanes[7]));
  const V old = load(tile.most + c * W), old_sum = load(tile.sum + c * W);
  const V now = larger(old, most);
  const V b = exp_of(old - now), o = exp_of(most - now);
  const VI sees = lo < hi;
  store(tile.most + c * W, sees ? now : old);
  store(tile.sum + c * W, sees ? fused(sum, o, old_sum * b) : old_sum);
  store(before + c * W, b);
  store(own + c * W, o);
}

template <size_t R, size_t N>
inline void tile_values(const AttentionBlock& block, const AttentionTile& tile, size_t r0, size_t d,
                        const float* before, const float* own) {
  V acc[R][N] = {};
  add_seen_values<R, N>(acc, tile.weights + r0, 1, kWidth, block.v + d, block.dim, tile.lo + r0, tile.hi + r0);
#pragma GCC unroll 8
  for (size_t r = 0; r < R; ++r) {
    if (tile.lo[r0 + r] == tile.hi[r0 + r]) continue;
    float* y = tile.y[r0 + r] + d;
#pragma GCC unroll 4
    for (size_t c = 0; c < N; ++c) {
      store(y + c * W, fused(acc[r][c], splat(own[r0 + r]), load(y + c * W) * before[r0 + r]));
    }
  }
}

template <size_t N>
inline void tile_column(const AttentionBlock& block, const AttentionTile& tile, size_t d, const float* before,
                        const float* own) {
  size_t r = 0;
  for (; r + kTileKeys <= tile.rows; r += kTileKeys) tile_values<kTileKeys, N>(block, tile, r, d, before, own);
  for (; r < tile.rows; ++r) tile_values<1, N>(block, tile, r, d, before, own);
}

void tile(const AttentionBlock& block, const AttentionTile& tile) {
  for (size_t j = 0; j < block.count; j += kTileKeys) {
    const float* k[kTileKeys];
    for (size_t i = 0; i < kTileKeys; ++i) k[i] = block.k + least(j + i, block.count - 1) * block.dim;
    tile_scores(k, tile.q, block.dim, tile.weights + j * kWidth);
  }
  bool all = block.count == kPositions;
  for (size_t r = 0; r < tile.rows; ++r) all = all && tile.lo[r] == 0 && tile.hi[r] == kPositions;
  alignas(64) float before[kWidth], own[kWidth];
  for (size_t c = 0; c * W < tile.rows; ++c) soften_columns(block, tile, all, c, before, own);
  size_t d = 0;
  for (; d + kTileColumns * W <= block.dim; d += kTileColumns * W) {
    tile_column<kTileColumns>(block, tile, d, before, own);
  }
  for (; d < block.dim; d += W) tile_column<1>(block, tile, d, before, own);
}

}  // namespace
}  // namespace edgekit
