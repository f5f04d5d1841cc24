// Eight tokens by eight rows of weights whose blocks have a scale each, for ARM's files with dot products, after
// blocks_arm.h. The file that includes it defines how eight rows are unpacked and multiplied, 16 codes of each after
// the other:
//   pack_rows(format, w, row_bytes, rows, bytes, panel) for kTernary and kInt8, pack_int4(rows, begin, end, panel), and
//   multiply_chunks(panel, x, chunks, places, sums), of each token two vectors of four rows.
namespace edgekit {
namespace {

constexpr size_t kTileRows = 8, kTileTokens = 8;

void block_tiles(const BlockProduct& p, size_t row, size_t from, size_t tokens, float* y) {
  alignas(16) uint8_t panel[kMostBlock * kTileRows];
  const bool int4 = p.format == kInt4;
  const size_t bytes = code_bytes(p.format, p.block);
  const size_t chunks = int4 ? (bytes + 15) / 16 * 2 : p.block / 16;  // those of low and of high codes in turn
  const uint8_t* rows[kTileRows];
  for (size_t r = 0; r < kTileRows; ++r) rows[r] = p.w + (row + r) * p.row_bytes;
  for (size_t b = 0; b < p.blocks; ++b) {
    const size_t begin = b * bytes;
    if (int4) {
      pack_int4(rows, begin, begin + bytes, panel);
    } else {
      pack_rows(p.format == kTernary ? kTernary : kInt8, rows[0] + begin, p.row_bytes, kTileRows, bytes, panel);
    }
    const Places places = int4 ? Places{place<kInt4>(begin), kInt4Half, 16} : Places{b * p.block, 16, 32};
    float scales[kTileRows];
    for (size_t r = 0; r < kTileRows; ++r) scales[r] = p.scale((row + r) * p.blocks + b);
    for (size_t t = 0; t < tokens; t += kTileTokens) {
      const int8_t* x[kTileTokens];
      int32x4_t sums[kTileTokens][2];
#pragma GCC unroll 8
      for (size_t i = 0; i < kTileTokens; ++i) x[i] = p.x + (from + t + i) * p.stride;
      multiply_chunks(panel, x, chunks, places, sums);
#pragma GCC unroll 8
      for (size_t i = 0; i < kTileTokens; ++i) {
        const size_t of_token = (from + t + i) * p.blocks + b;
#pragma GCC unroll 2
        for (size_t h = 0; h < 2; ++h) {
          float* to = y + (t + i) * kPartRows + 4 * h;
          RowSums result;
          if (b != 0) result.load(to);
          result.add(sums[i][h], p.corrections[of_token], p.steps[of_token], scales + 4 * h);
          result.store(to);
        }
      }
    }
  }
}

// As many tokens as are whole tiles; returns how many.
size_t tiled_tokens(const BlockProduct& p, size_t first, size_t rows, size_t from, size_t tokens, float* y) {
  const size_t tiled = tokens & ~(kTileTokens - 1);
  if (tiled != 0) {
    for (size_t r = 0; r < rows; r += kTileRows) block_tiles(p, first + r, from, tiled, y + r);
  }
  return tiled;
}

}  // namespace
}  // namespace edgekit
