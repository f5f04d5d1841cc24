// Eight tokens by eight rows of 4-bit weights, for ARM's files with dot products, after int4_arm.h. The file that
// includes it defines how a block of eight rows is unpacked and multiplied:
//   int4_pack(rows, begin, end, panel) and int4_tile(panel, x, begin, end, sums), of each token two vectors of four
//   rows.
namespace edgekit {
namespace {

constexpr size_t kInt4TileRows = 8, kInt4TileTokens = 8;

void int4_tiles(const Int4Product& p, size_t row, size_t from, size_t tokens, float* y) {
  alignas(16) uint8_t panel[kMostInt4Block * kInt4TileRows];
  const uint8_t* rows[kInt4TileRows];
  for (size_t r = 0; r < kInt4TileRows; ++r) rows[r] = p.w + (row + r) * p.row_bytes;
  for (size_t b = 0; b < p.blocks; ++b) {
    const size_t begin = b * p.block / 2, end = (b + 1) * p.block / 2;
    int4_pack(rows, begin, end, panel);
    float scales[kInt4TileRows];
    for (size_t r = 0; r < kInt4TileRows; ++r) scales[r] = p.scales[(row + r) * p.blocks + b];
    for (size_t t = 0; t < tokens; t += kInt4TileTokens) {
      const int8_t* x[kInt4TileTokens];
      int32x4_t sums[kInt4TileTokens][2];
#pragma GCC unroll 8
      for (size_t i = 0; i < kInt4TileTokens; ++i) x[i] = p.x + (from + t + i) * p.stride;
      int4_tile(panel, x, begin, end, sums);
#pragma GCC unroll 8
      for (size_t i = 0; i < kInt4TileTokens; ++i) {
        const size_t at = (from + t + i) * p.blocks + b;
#pragma GCC unroll 2
        for (size_t h = 0; h < 2; ++h) {
          float* to = y + (t + i) * kInt4Rows + 4 * h;
          Int4Y result;
          if (b != 0) result.load(to);
          result.add(sums[i][h], p.corrections[at], p.steps[at], scales + 4 * h);
          result.store(to);
        }
      }
    }
  }
}

// As many tokens as are whole tiles; returns how many.
size_t int4_tiled(const Int4Product& p, size_t first, size_t rows, size_t from, size_t tokens, float* y) {
  const size_t tiled = tokens & ~(kInt4TileTokens - 1);
  if (tiled != 0) {
    for (size_t r = 0; r < rows; r += kInt4TileRows) int4_tiles(p, first + r, from, tiled, y + r);
  }
  return tiled;
}

}  // namespace
}  // namespace edgekit
