// CachedAttention with checked arguments, on ONNX Runtime's threads.
#if !defined(__arm__)  // attention.h says why
#include "attention_arguments.h"
#include "kernels.h"
#include "message.h"

namespace edgekit {
namespace {

constexpr size_t kAligned = 64;
constexpr size_t kMostShares = 16;      // parts for threads, as in product.cpp
constexpr size_t kShares = 8;           // of tiles, for all heads: a cache is read again for each of a head's
constexpr size_t kShareFloats = 16384;  // multiplications' operands in a part at least

// One call of the operator: what its parts share.
struct Call {
  const AttentionKernels& kernels;
  const AttentionAttributes& attributes;
  const AttentionArguments& a;
  size_t shared;  // query heads of a key-value head
  size_t blocks;  // of the longest row of the batch
  float* q;       // [batch, groups, tokens * shared, dim], turned and scaled
  // Few rows: what each block gives, [batch * groups, blocks, rows], and its values, [.., dim].
  AttentionPart* parts;
  float* values;
  // Tiles: of each its queries as columns [dim, width], and its state [2, width]; how many go through blocks together,
  // and how many such shares a key-value head has.
  float *columns, *states;
  size_t tiles, shares;

  size_t rows() const { return a.tokens * shared; }
  size_t tiles_of_head() const { return (rows() + kernels.width - 1) / kernels.width; }
  float* row_of_y(size_t b, size_t g, size_t row) const {
    const size_t t = row / shared, h = row - t * shared;
    return a.y + ((b * a.tokens + t) * a.heads + g * shared + h) * a.dim;
  }
  // The positions that token t of row b sees: from here up to its own.
  size_t first_seen(size_t b, size_t t) const {
    const size_t end = a.start(b) + t + 1, window = static_cast<size_t>(attributes.window);
    return attributes.window < 0 || end < window ? 0 : end - window;
  }
  // What of block `block` each of `rows` rows from `row` sees.
  void see(size_t b, size_t block, size_t row, size_t rows, int32_t* lo, int32_t* hi) const {
    size_t t = row / shared, h = row - t * shared;
    const size_t begin = block * kPositions;
    for (size_t r = 0; r < rows; ++r) {
      const size_t first = first_seen(b, t), end = a.start(b) + t + 1;
      const size_t from = first > begin ? first - begin : 0, to = end > begin ? end - begin : 0;
      hi[r] = static_cast<int32_t>(to < kPositions ? to : kPositions);
      lo[r] = from < static_cast<size_t>(hi[r]) ? static_cast<int32_t>(from) : hi[r];
      if (++h == shared) h = 0, ++t;
    }
  }
  AttentionBlock block(size_t b, size_t g, size_t block) const {
    const size_t at = ((b * a.groups + g) * a.slots + block * kPositions) * a.dim;
    const size_t left = static_cast<size_t>(a.ends[b]) + 1 - block * kPositions;
    return {a.present_k + at, a.present_v + at, a.dim, left < kPositions ? left : kPositions, attributes.softcap};
  }
  size_t blocks_of(size_t b) const { return static_cast<size_t>(a.ends[b]) / kPositions + 1; }
  AttentionPart initial(size_t head) const {
    return {a.sink != nullptr ? a.sink[head] : -__builtin_inff(), a.sink != nullptr ? 1.0f : 0.0f};
  }
};

// A cache that is not written in place: what is in use of it, and zeros.
void copy_cache(void* data, size_t item) {
  const Call& call = *static_cast<const Call*>(data);
  const AttentionArguments& a = call.a;
  const size_t heads = a.batch * a.groups, at = item % heads, b = at / a.groups, used = a.start(b) * a.dim;
  const float* from = (item < heads ? a.past_k : a.past_v) + at * a.past_slots * a.dim;
  float* to = (item < heads ? a.present_k : a.present_v) + at * a.slots * a.dim;
  __builtin_memcpy(to, from, used * sizeof(float));
  __builtin_memset(to + used, 0, (a.slots * a.dim - used) * sizeof(float));
}

// One token's heads: turned, keys and values into the cache.
void place_token(void* data, size_t item) {
  const Call& call = *static_cast<const Call*>(data);
  const AttentionArguments& a = call.a;
  const size_t b = item / a.tokens, t = item - b * a.tokens, slot = a.start(b) + t;
  const float *cos = a.cos + slot * a.half, *sin = a.sin + slot * a.half;
  const bool interleaved = call.attributes.interleaved != 0;
  for (size_t g = 0; g < a.groups; ++g) {
    const size_t from = item * a.kv_stride + g * a.dim, to = ((b * a.groups + g) * a.slots + slot) * a.dim;
    call.kernels.rotate(a.k + from, a.dim, cos, sin, a.half, interleaved, 1.0f, a.present_k + to);
    __builtin_memcpy(a.present_v + to, a.v + from, a.dim * sizeof(float));
    for (size_t h = 0; h < call.shared; ++h) {
      const float* q = a.q + item * a.q_stride + (g * call.shared + h) * a.dim;
      float* row = call.q + ((b * a.groups + g) * call.rows() + t * call.shared + h) * a.dim;
      call.kernels.rotate(q, a.dim, cos, sin, a.half, interleaved, call.attributes.scale, row);
    }
  }
}

// One block of a key-value head for the few rows there are.
void few_part(void* data, size_t item) {
  const Call& call = *static_cast<const Call*>(data);
  const AttentionArguments& a = call.a;
  const size_t head = item / call.blocks, block = item - head * call.blocks, b = head / a.groups, rows = call.rows();
  if (block >= call.blocks_of(b)) return;
  const AttentionBlock positions = call.block(b, head - b * a.groups, block);
  for (size_t row = 0; row < rows; row += kFewRows) {
    const size_t some = rows - row < kFewRows ? rows - row : kFewRows, at = item * rows + row;
    int32_t lo[kFewRows], hi[kFewRows];
    call.see(b, block, row, some, lo, hi);
    bool any = false;
    for (size_t r = 0; r < some; ++r) any = any || lo[r] < hi[r];
    if (!any) continue;
    call.kernels.few(positions, call.q + (head * rows + row) * a.dim, some, lo, hi, call.parts + at,
                     call.values + at * a.dim);
  }
}

void divide(const AttentionPart& state, size_t dim, float* y) {
  const float inverse = 1.0f / state.sum;
  for (size_t d = 0; d < dim; ++d) y[d] *= inverse;
}

// A row's blocks, put together in their order.
void few_row(void* data, size_t item) {
  const Call& call = *static_cast<const Call*>(data);
  const AttentionArguments& a = call.a;
  const size_t rows = call.rows(), head = item / rows, row = item - head * rows, b = head / a.groups;
  const size_t g = head - b * a.groups;
  AttentionPart state = call.initial(g * call.shared + row % call.shared);
  float* y = call.row_of_y(b, g, row);
  for (size_t d = 0; d < a.dim; ++d) y[d] = 0;
  for (size_t block = call.first_seen(b, row / call.shared) / kPositions; block < call.blocks_of(b); ++block) {
    int32_t lo, hi;
    call.see(b, block, row, 1, &lo, &hi);
    const size_t at = (head * call.blocks + block) * rows + row;
    if (lo < hi) call.kernels.merge(call.parts[at], call.values + at * a.dim, a.dim, &state, y);
  }
  divide(state, a.dim, y);
}

typedef float Four __attribute__((vector_size(16), aligned(4), may_alias));

// Rows of queries -> columns of `width`; columns without a row become 0.
void turn_over(const float* q, size_t rows, size_t dim, size_t width, float* out) {
  const size_t whole = rows & ~size_t{3};
  for (size_t r = 0; r < whole; r += 4) {
    for (size_t d = 0; d < dim; d += 4) {
      Four v[4];
      for (size_t i = 0; i < 4; ++i) v[i] = *reinterpret_cast<const Four*>(q + (r + i) * dim + d);
      const Four ab = __builtin_shufflevector(v[0], v[1], 0, 4, 1, 5);
      const Four cd = __builtin_shufflevector(v[2], v[3], 0, 4, 1, 5);
      const Four ef = __builtin_shufflevector(v[0], v[1], 2, 6, 3, 7);
      const Four gh = __builtin_shufflevector(v[2], v[3], 2, 6, 3, 7);
      float* to = out + d * width + r;
      *reinterpret_cast<Four*>(to) = __builtin_shufflevector(ab, cd, 0, 1, 4, 5);
      *reinterpret_cast<Four*>(to + width) = __builtin_shufflevector(ab, cd, 2, 3, 6, 7);
      *reinterpret_cast<Four*>(to + 2 * width) = __builtin_shufflevector(ef, gh, 0, 1, 4, 5);
      *reinterpret_cast<Four*>(to + 3 * width) = __builtin_shufflevector(ef, gh, 2, 3, 6, 7);
    }
  }
  for (size_t r = whole; r < width; ++r) {
    for (size_t d = 0; d < dim; ++d) out[d * width + r] = r < rows ? q[r * dim + d] : 0;
  }
}

// What a tile's rows begin with.
void begin_tile(const Call& call, size_t head, size_t tile) {
  const AttentionArguments& a = call.a;
  const size_t width = call.kernels.width, row = tile * width, at = head * call.tiles_of_head() + tile;
  const size_t rows = call.rows() - row < width ? call.rows() - row : width;
  const size_t b = head / a.groups, g = head - b * a.groups;
  turn_over(call.q + (head * call.rows() + row) * a.dim, rows, a.dim, width, call.columns + at * width * a.dim);
  float* state = call.states + at * 2 * width;
  for (size_t r = 0; r < width; ++r) {
    const AttentionPart initial = call.initial(g * call.shared + (row + r) % call.shared);
    state[r] = initial.most, state[width + r] = initial.sum;
    if (r >= rows) continue;
    float* y = call.row_of_y(b, g, row + r);
    for (size_t d = 0; d < a.dim; ++d) y[d] = 0;
  }
}

// A block for a tile.
void add_block(const Call& call, size_t head, size_t tile, size_t block) {
  const AttentionArguments& a = call.a;
  const size_t width = call.kernels.width, row = tile * width, at = head * call.tiles_of_head() + tile;
  const size_t rows = call.rows() - row < width ? call.rows() - row : width;
  const size_t b = head / a.groups, g = head - b * a.groups;
  alignas(kAligned) float weights[kPositions * kMostAttentionRows];
  alignas(kAligned) int32_t lo[kMostAttentionRows] = {}, hi[kMostAttentionRows] = {};
  call.see(b, block, row, rows, lo, hi);
  if (lo[rows - 1] == hi[rows - 1] && lo[0] == hi[0]) return;  // before the window of all, or behind all
  float* y[kMostAttentionRows];
  for (size_t r = 0; r < rows; ++r) y[r] = call.row_of_y(b, g, row + r);
  AttentionBlock positions = call.block(b, g, block);
  positions.count = static_cast<size_t>(hi[rows - 1]);  // later rows see more
  float* state = call.states + at * 2 * width;
  call.kernels.tile(positions, {call.columns + at * width * a.dim, rows, state, state + width, y, weights, lo, hi});
}

// Some tiles of a key-value head through all blocks that they see: a block is read from memory once for all of them.
void tiles_part(void* data, size_t item) {
  const Call& call = *static_cast<const Call*>(data);
  const AttentionArguments& a = call.a;
  const size_t head = item / call.shares, first = (item - head * call.shares) * call.tiles;
  const size_t all = call.tiles_of_head(), some = all - first < call.tiles ? all - first : call.tiles;
  if (first >= all) return;
  const size_t width = call.kernels.width, b = head / a.groups, at = head * all + first;
  for (size_t i = 0; i < some; ++i) begin_tile(call, head, first + i);
  const size_t first_token = first * width / call.shared, rows = call.rows();
  const size_t last_row = (first + some) * width < rows ? (first + some) * width : rows;
  const size_t end = (a.start(b) + (last_row - 1) / call.shared) / kPositions + 1;
  for (size_t block = call.first_seen(b, first_token) / kPositions; block < end; ++block) {
    for (size_t i = 0; i < some; ++i) add_block(call, head, first + i, block);
  }
  for (size_t i = 0; i < some; ++i) {
    for (size_t r = 0; r < width && (first + i) * width + r < rows; ++r) {
      const float sum = call.states[(at + i) * 2 * width + width + r];
      divide({0, sum}, a.dim, call.row_of_y(b, head - b * a.groups, (first + i) * width + r));
    }
  }
}

size_t sharing(size_t floats, size_t items) {
  const size_t wanted = floats / kShareFloats;
  const size_t most = wanted < kMostShares ? wanted : kMostShares;
  return most < 1 ? 1 : most < items ? most : items;
}

OrtStatus* run(const Api& api, const OrtKernelContext* context, Call& call, bool few) {
  const AttentionArguments& a = call.a;
  const size_t heads = a.batch * a.groups, seen = call.blocks * kPositions * a.dim;
  const size_t tokens = a.batch * a.tokens;
  const size_t few_tokens = sharing(tokens * a.heads * a.dim, tokens);
  if (OrtStatus* status = api.parallel_for(context, place_token, tokens, few_tokens, &call)) return status;
  if (!few) {
    const size_t items = heads * call.shares;
    return api.parallel_for(context, tiles_part, items, items, &call);
  }
  const size_t items = heads * call.blocks, some = sharing(heads * seen, items);
  if (OrtStatus* status = api.parallel_for(context, few_part, items, some, &call)) return status;
  const size_t rows = heads * call.rows();
  return api.parallel_for(context, few_row, rows, sharing(rows * call.blocks * a.dim, rows), &call);
}

size_t aligned(size_t bytes) { return (bytes + kAligned - 1) & ~(kAligned - 1); }

}  // namespace

OrtStatus* attend(const Api& api, const OrtKernelContext* context, OrtAllocator* allocator,
                  const AttentionKernels& best, const AttentionAttributes& attributes, const AttentionArguments& a) {
  const AttentionKernels& kernels = a.dim & (best.head_step - 1) ? *best.narrow : best;
  Call call{kernels, attributes, a, a.heads / a.groups, 0, nullptr, nullptr, nullptr, nullptr, nullptr, 1, 1};
  if (a.batch == 0) return nullptr;
  if (a.present_k != a.past_k || a.present_v != a.past_v) {
    const size_t caches = 2 * a.batch * a.groups, some = sharing(caches * a.slots * a.dim, caches);
    if (OrtStatus* status = api.parallel_for(context, copy_cache, caches, some, &call)) return status;
  }
  if (a.tokens == 0) return nullptr;
  for (size_t b = 0; b < a.batch; ++b) {
    if (call.blocks_of(b) > call.blocks) call.blocks = call.blocks_of(b);
  }
  const bool few = call.rows() <= kernels.few_most;
  const size_t heads = a.batch * a.groups, tiles = call.tiles_of_head(), all = heads * tiles;
  call.tiles = all / kShares < 1 ? 1 : all / kShares < tiles ? all / kShares : tiles;
  call.shares = (tiles + call.tiles - 1) / call.tiles;
  const size_t q = aligned(heads * call.rows() * a.dim * sizeof(float));
  const size_t columns = few ? 0 : all * kernels.width * a.dim * sizeof(float);
  const size_t parts = few ? heads * call.blocks * call.rows() : 0;
  const size_t values = aligned(parts * a.dim * sizeof(float));
  const size_t rest = few ? parts * sizeof(AttentionPart) : all * 2 * kernels.width * sizeof(float);
  void* memory = nullptr;
  if (OrtStatus* status = api.allocate(allocator, kAligned + q + columns + values + rest, &memory)) return status;
  char* first = reinterpret_cast<char*>(aligned(reinterpret_cast<size_t>(memory)));
  call.q = reinterpret_cast<float*>(first);
  call.columns = call.values = reinterpret_cast<float*>(first + q);  // there is one of them
  call.states = reinterpret_cast<float*>(first + q + columns + values);
  call.parts = reinterpret_cast<AttentionPart*>(call.states);
  OrtStatus* status = run(api, context, call, few);
  OrtStatus* freed = api.free(allocator, memory);
  if (status == nullptr) return freed;
  if (freed != nullptr) api.release_status(freed);
  return status;
}

}  // namespace edgekit
#endif
