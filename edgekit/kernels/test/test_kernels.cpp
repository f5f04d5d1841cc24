// Every instruction set that this processor has against the scalar kernels, bit for bit, with inputs that end where
// memory ends and outputs between guard bytes. Arguments: names of instruction sets that must have run.
#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "kernels.h"
#include "processor.h"

#if defined(__linux__) && defined(__aarch64__)
#include <sys/auxv.h>
unsigned long (*const kKept)(unsigned long) = &getauxval;  // weak in the library; a static program would leave it out
#endif

using namespace edgekit;

namespace {

int checks = 0, failures = 0;

void check(bool ok, const char* isa, const char* what, size_t a, size_t b, size_t c) {
  ++checks;
  if (!ok && ++failures <= 10) std::printf("%s: %s differs (%zu, %zu, %zu)\n", isa, what, a, b, c);
}

// A number from 0 to 2^31 - 1. (Half of this program's time went to std::rand.)
int draw() {
  static uint32_t state = 1;
  state ^= state << 13, state ^= state >> 17, state ^= state << 5;
  return static_cast<int>(state >> 1);
}

// Memory whose last byte is followed by a page that cannot be read.
class Fenced {
 public:
  explicit Fenced(size_t size) : size_(size) {
    const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    total_ = (size + page - 1) / page * page + page;
    base_ = static_cast<uint8_t*>(mmap(nullptr, total_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (base_ == MAP_FAILED || mprotect(base_ + total_ - page, page, PROT_NONE) != 0) std::abort();
    data_ = base_ + total_ - page - size;
  }
  ~Fenced() { munmap(base_, total_); }
  Fenced(const Fenced&) = delete;
  Fenced& operator=(const Fenced&) = delete;
  uint8_t* data() { return data_; }
  size_t size() const { return size_; }

 private:
  size_t size_, total_;
  uint8_t *base_, *data_;
};

// An output with guard words on both sides.
template <class T>
class Guarded {
 public:
  explicit Guarded(size_t count) : memory_(count + 32, T(77)), count_(count) {}
  T* data() { return memory_.data() + 16; }
  bool intact() const {
    for (size_t i = 0; i < 16; ++i) {
      if (memory_[i] != T(77) || memory_[16 + count_ + i] != T(77)) return false;
    }
    return true;
  }

 private:
  std::vector<T> memory_;
  size_t count_;
};

void fill(Fenced& memory, Format format, int kind) {
  for (size_t i = 0; i < memory.size(); ++i) {
    memory.data()[i] = static_cast<uint8_t>(kind == 0 ? draw() : format == kInt8 ? (draw() & 1) * 255 : 0xFF);
  }
}

void fill_codes(Fenced& memory, int kind) {
  for (size_t i = 0; i < memory.size(); ++i) {
    memory.data()[i] = static_cast<uint8_t>(kind == 0 ? draw() % 255 - 127 : (draw() & 1) ? 127 : -127);
  }
}

// What the caller subtracts: kernels may take a kInt8 code's zero as 128 or as 0.
int32_t correction(const Kernels& kernels, Format format, const int8_t* x, size_t count) {
  int32_t sum = 0;
  for (size_t i = 0; i < count; ++i) sum += x[i];
  return format == kInt8 ? (kScalar.int8_zero - kernels.int8_zero) * sum : 0;
}

struct Shape {
  Format format;
  size_t blocks, rows, tokens;
  int kind;
};

void test_gemv(const Kernels& kernels, const Shape& s, bool each) {
  const size_t row_bytes = s.blocks * block_bytes(s.format), stride = s.blocks * kBlock, pieces = each ? s.blocks : 1;
  Fenced w(s.rows * row_bytes), x(s.tokens * stride);
  fill(w, s.format, s.kind);
  fill_codes(x, s.kind);
  const int8_t* codes = reinterpret_cast<const int8_t*>(x.data());
  Guarded<int32_t> expected(s.tokens * pieces * kGemvRows), found(s.tokens * pieces * kGemvRows);
  kScalar.gemv(s.format, w.data(), row_bytes, s.rows, codes, stride, s.tokens, s.blocks, each, expected.data());
  kernels.gemv(s.format, w.data(), row_bytes, s.rows, codes, stride, s.tokens, s.blocks, each, found.data());
  check(found.intact(), kernels.name, "memory around gemv's sums", s.blocks, s.rows, s.tokens);
  for (size_t t = 0; t < s.tokens; ++t) {
    for (size_t p = 0; p < pieces; ++p) {
      const int32_t less = correction(kernels, s.format, codes + t * stride + p * kBlock, each ? kBlock : stride);
      for (size_t r = 0; r < s.rows; ++r) {
        const size_t at = (t * pieces + p) * kGemvRows + r;
        check(expected.data()[at] - less == found.data()[at], kernels.name, "gemv", s.blocks, s.rows, s.tokens);
      }
    }
  }
}

void test_tile(const Kernels& kernels, const Shape& s, bool add) {
  const size_t row_bytes = s.blocks * block_bytes(s.format), stride = s.blocks * kBlock;
  const size_t rows = s.rows < kernels.panel_rows ? s.rows : kernels.panel_rows, tokens = s.tokens * 9 + s.kind;
  Fenced w(rows * row_bytes), x(tokens * stride);
  fill(w, s.format, s.kind);
  fill_codes(x, s.kind);
  const int8_t* codes = reinterpret_cast<const int8_t*>(x.data());
  Guarded<uint8_t> panel(kernels.panel_rows * stride);
  Guarded<int32_t> sums(tokens * kernels.panel_rows);
  for (size_t i = 0; i < tokens * kernels.panel_rows; ++i) sums.data()[i] = 1000;
  kernels.pack(s.format, w.data(), row_bytes, rows, s.blocks, panel.data());
  kernels.tile(s.format, panel.data(), codes, stride, tokens, s.blocks, add, sums.data());
  check(panel.intact() && sums.intact(), kernels.name, "memory around the panel or its sums", s.blocks, rows, tokens);
  for (size_t t = 0; t < tokens; ++t) {
    const int32_t less = correction(kernels, s.format, codes + t * stride, stride) - (add ? 1000 : 0);
    for (size_t r = 0; r < rows; ++r) {
      int32_t one[kGemvRows];
      kScalar.gemv(s.format, w.data() + r * row_bytes, row_bytes, 1, codes + t * stride, stride, 1, s.blocks, false,
                   one);
      check(one[0] - less == sums.data()[t * kernels.panel_rows + r], kernels.name, "tile", s.blocks, rows, tokens);
    }
  }
}

void test_products(const Kernels& kernels) {
  for (Format format : {kTernary, kInt8}) {
    for (size_t blocks : {1, 2, 3, 7, 54}) {
      for (size_t rows : {1, 2, 3, 4, 5, 8, 13, 31, 32}) {
        for (size_t tokens : {1, 2, 3, 4}) {
          for (int kind : {0, 1}) {
            const Shape shape{format, blocks, rows, tokens, kind};
            test_gemv(kernels, shape, false);
            test_gemv(kernels, shape, true);
            if (blocks < 54) test_tile(kernels, shape, tokens % 2 != 0);
          }
        }
      }
    }
  }
}

void test_quantize(const Kernels& kernels, size_t count, float scale, int mode) {
  const bool each = mode & 1, steps_each = (mode & 2) != 0 && each, planes = (mode & 4) != 0;
  const size_t blocks = (count + kBlock - 1) / kBlock, pieces = each ? blocks : 1;
  Fenced memory(count * sizeof(float));
  float* x = reinterpret_cast<float*>(memory.data());
  for (size_t i = 0; i < count; ++i) x[i] = (static_cast<float>(draw()) / 2147483648.0f - 0.5f) * scale;
  Guarded<int8_t> codes(blocks * kBlock), expected_codes(blocks * kBlock);
  Guarded<float> steps(pieces), expected_steps(pieces);
  Guarded<int32_t> sums(pieces), expected_sums(pieces);
  bool ok = kScalar.quantize(x, count, steps_each, each, planes, expected_codes.data(), expected_steps.data(),
                             expected_sums.data());
  ok &= kernels.quantize(x, count, steps_each, each, planes, codes.data(), steps.data(), sums.data());
  ok &= codes.intact() && steps.intact() && sums.intact();
  ok &= std::memcmp(codes.data(), expected_codes.data(), blocks * kBlock) == 0;
  ok &= std::memcmp(steps.data(), expected_steps.data(), pieces * sizeof(float)) == 0;
  ok &= std::memcmp(sums.data(), expected_sums.data(), pieces * sizeof(int32_t)) == 0;
  check(ok, kernels.name, "quantize", count, static_cast<size_t>(mode), 0);
  const uint32_t bad[] = {0x7F800000, 0xFF800000, 0x7FC00000, 0x7F800001};
  for (uint32_t bits : bad) {
    std::memcpy(x + count - 1, &bits, sizeof bits);
    ok = kernels.quantize(x, count, steps_each, each, planes, codes.data(), steps.data(), sums.data());
    check(!ok, kernels.name, "quantize of what is not finite", count, static_cast<size_t>(mode), bits);
  }
}

void test_finish(const Kernels& kernels, size_t rows, bool one_scale, bool add) {
  constexpr size_t kPieces = 3;
  std::vector<int32_t> sums(kPieces * kGemvRows), corrections(kPieces);
  std::vector<float> scales(kGemvRows), steps(kPieces), expected(rows), found(rows);
  for (int32_t& sum : sums) sum = draw() - INT32_MAX / 2;
  for (int32_t& correction : corrections) correction = draw();
  for (float& scale : scales) scale = static_cast<float>(draw()) / 2147483648.0f;
  for (float& step : steps) step = static_cast<float>(draw()) / 2147483648.0f;
  for (size_t r = 0; r < rows; ++r) expected[r] = found[r] = static_cast<float>(draw()) / 1e5f;
  kScalar.finish(sums.data(), kGemvRows, kPieces, corrections.data(), steps.data(), scales.data(), one_scale, rows, add,
                 expected.data());
  kernels.finish(sums.data(), kGemvRows, kPieces, corrections.data(), steps.data(), scales.data(), one_scale, rows, add,
                 found.data());
  const bool same = std::memcmp(expected.data(), found.data(), rows * sizeof(float)) == 0;
  check(same, kernels.name, "finish", rows, one_scale, add);
}

// A sparse row of so many blocks, as it may stand at the very end of W: bytes of codes, and the tail.
std::vector<uint8_t> sparse_row(Format format, size_t blocks, int percent, size_t* codes) {
  std::vector<uint8_t> bytes(blocks * kMaskBytes);
  size_t stored[2] = {0, 0};  // in the first and in the second halves of blocks
  for (size_t i = 0; i < blocks * kBlock; ++i) {
    if (draw() % 100 >= percent) continue;
    bytes[i / 8] |= static_cast<uint8_t>(1 << i % 8);
    ++stored[i / kGroup % 2];
  }
  *codes = format == kSparse8 ? stored[0] + stored[1] : stored[0] > stored[1] ? stored[0] : stored[1];
  for (size_t i = 0; i < *codes + kSparseTail; ++i) bytes.push_back(static_cast<uint8_t>(draw()));
  return bytes;
}

void test_sparse_row(const Kernels& kernels, Format format, size_t blocks, int percent, bool each) {
  size_t codes = 0;
  const std::vector<uint8_t> bytes = sparse_row(format, blocks, percent, &codes);
  Fenced w(bytes.size()), memory(blocks * kBlock);
  std::memcpy(w.data(), bytes.data(), bytes.size());
  fill_codes(memory, percent % 2);
  const int8_t* x = reinterpret_cast<const int8_t*>(memory.data());
  const uint8_t *begin = w.data() + blocks * kMaskBytes, *end = begin + codes;
  const size_t pieces = each ? blocks : 1, percents = static_cast<size_t>(percent);
  Guarded<int32_t> expected(pieces * kGemvRows), found(pieces * kGemvRows);
  SparseRow row{w.data(), {begin, begin}, end}, own = row;
  bool ok = kScalar.sparse(format, &row, x, blocks, each, expected.data());
  ok &= kernels.sparse(format, &own, x, blocks, each, found.data()) && found.intact();
  ok &= own.done() && own.mask == begin && row.done() && row.mask == begin;
  check(ok, kernels.name, "reading of a sparse row", blocks, percents, each);
  const int zero = format == kSparse4 ? kernels.sparse4_zero : kernels.int8_zero;
  for (size_t p = 0; p < pieces; ++p) {
    int32_t sum = 0;
    for (size_t k = 0; k < (each ? kBlock : blocks * kBlock); ++k) sum += x[p * kBlock + k];
    const int32_t less = (128 - zero) * sum;
    check(expected.data()[p * kGemvRows] - less == found.data()[p * kGemvRows], kernels.name, "sparse", blocks,
          percents, p);
  }
  Guarded<uint8_t> dense(blocks * kBlock), same(blocks * kBlock);
  row = own = SparseRow{w.data(), {begin, begin}, end};
  ok = kScalar.expand(format, &row, blocks, dense.data()) && kernels.expand(format, &own, blocks, same.data());
  ok &= same.intact() && own.done() && std::memcmp(dense.data(), same.data(), blocks * kBlock) == 0;
  check(ok, kernels.name, "expand", blocks, percents, 0);
  if (codes == 0) return;
  // One byte less than the mask says: seen, and nothing behind the tail is read.
  Fenced less(bytes.size() - 1);
  std::memcpy(less.data(), bytes.data(), less.size());
  const uint8_t* first = less.data() + blocks * kMaskBytes;
  row = own = SparseRow{less.data(), {first, first}, first + codes - 1};
  ok = kernels.sparse(format, &row, x, blocks, each, found.data());
  ok |= kernels.expand(format, &own, blocks, same.data());
  check(!ok && found.intact() && same.intact(), kernels.name, "a row whose codes are too few", blocks, percents, 0);
}

void test_sparse(const Kernels& kernels) {
  for (Format format : {kSparse4, kSparse8}) {
    for (size_t blocks : {1, 2, 3, 4, 5, 9, 20}) {
      for (int percent : {0, 1, 5, 10, 20, 33, 50, 81, 100}) {
        for (bool each : {false, true}) test_sparse_row(kernels, format, blocks, percent, each);
      }
    }
  }
}

// Weights in rows of so many blocks with a scale each; kind 0: random, 1: the largest codes, 2: and the largest
// activations.
struct BlockShape {
  Format format;
  size_t block, blocks, rows, tokens;
  int kind;
};

int32_t zero_of(const Kernels& kernels, Format format) {
  return format == kTernary ? 1 : format == kInt4 ? 8 : kernels.int8_zero;
}

void test_block_multiply(const Kernels& kernels, const BlockShape& s, bool half_scales = false) {
  const size_t first = s.blocks % 2 * 3, n = first + s.rows, from = s.rows % 3, all = from + s.tokens;
  const size_t stride = (s.blocks * s.block + kInt4Span - 1) / kInt4Span * kInt4Span;
  const size_t row_bytes = code_bytes(s.format, s.blocks * s.block);
  Fenced w(n * row_bytes), scales(n * s.blocks * (half_scales ? 2 : 4)), x(all * stride), steps(all * s.blocks * 4);
  Fenced corrections(all * s.blocks * 4);
  fill(w, s.format == kInt8Blocks ? kInt8 : kTernary, s.kind != 0);
  fill_codes(x, s.kind != 0);
  if (s.kind == 2) std::memset(x.data(), s.rows % 2 ? 127 : -127, x.size());
  float* of_rows = half_scales ? nullptr : reinterpret_cast<float*>(scales.data());
  uint16_t* halves = half_scales ? reinterpret_cast<uint16_t*>(scales.data()) : nullptr;
  float* of_tokens = reinterpret_cast<float*>(steps.data());
  int32_t* less = reinterpret_cast<int32_t*>(corrections.data());
  for (size_t i = 0; i < n * s.blocks; ++i) {
    if (half_scales) halves[i] = static_cast<uint16_t>(draw() & 0xBFFF);  // below 2, subnormal ones too
    if (!half_scales) of_rows[i] = static_cast<float>(draw()) / 1e9f - 1;
  }
  for (size_t i = 0; i < all * s.blocks; ++i) of_tokens[i] = static_cast<float>(draw()) / 1e9f;
  for (size_t i = 0; i < all * s.blocks; ++i) less[i] = -8 * (draw() % 4000 - 2000);
  // Corrections are of any value here; the scalar kernels can take a zero for whatever the others do.
  const BlockProduct product{
      s.format, zero_of(kernels, s.format),          s.block, s.blocks,  w.data(), row_bytes, of_rows,
      halves,   reinterpret_cast<int8_t*>(x.data()), stride,  of_tokens, less};
  alignas(64) static float expected[(kPartTokens + 1) * kPartRows], found[(kPartTokens + 1) * kPartRows];
  for (float& value : found) value = 77;
  kScalar.blocks->multiply(product, first, s.rows, from, s.tokens, expected);
  kernels.blocks->multiply(product, first, s.rows, from, s.tokens, found);
  for (size_t t = 0; t < s.tokens; ++t) {
    const bool same = std::memcmp(expected + t * kPartRows, found + t * kPartRows, s.rows * sizeof(float)) == 0;
    check(same, kernels.name, "product of blocks", static_cast<size_t>(s.format) * 1000 + s.block, s.blocks, t);
  }
  bool intact = true;
  for (size_t i = 0; i < kPartRows; ++i) intact &= found[s.tokens * kPartRows + i] == 77;
  check(intact, kernels.name, "memory behind a product of blocks", s.block, s.blocks, s.tokens);
}

void test_block_quantize(const Kernels& kernels, Format format, size_t block, size_t count, bool steps_each) {
  const size_t blocks = (count + block - 1) / block, bytes = (blocks * block + kInt4Span - 1) / kInt4Span * kInt4Span;
  const int32_t zero = zero_of(kernels, format);
  Fenced memory(count * sizeof(float));
  float* x = reinterpret_cast<float*>(memory.data());
  for (size_t i = 0; i < count; ++i) x[i] = static_cast<float>(draw()) / 1e9f - 1;
  Guarded<int8_t> codes(bytes), expected_codes(bytes);
  Guarded<float> steps(blocks), expected_steps(blocks);
  Guarded<int32_t> less(blocks), expected(blocks);
  bool ok = kScalar.blocks->quantize(x, count, block, steps_each, format, zero, expected_codes.data(),
                                     expected_steps.data(), expected.data());
  ok &= kernels.blocks->quantize(x, count, block, steps_each, format, zero, codes.data(), steps.data(), less.data());
  ok &= codes.intact() && steps.intact() && less.intact();
  ok &= std::memcmp(codes.data(), expected_codes.data(), bytes) == 0;
  ok &= std::memcmp(steps.data(), expected_steps.data(), blocks * sizeof(float)) == 0;
  ok &= std::memcmp(less.data(), expected.data(), blocks * sizeof(int32_t)) == 0;
  check(ok, kernels.name, "quantize for blocks", block, count, steps_each);
  const uint32_t nan = 0x7FC00000;
  std::memcpy(x + count - 1, &nan, sizeof nan);
  ok = kernels.blocks->quantize(x, count, block, steps_each, format, zero, codes.data(), steps.data(), less.data());
  check(!ok, kernels.name, "quantize of NaN for blocks", block, count, steps_each);
}

void test_blocks(const Kernels& kernels, Format format, size_t block) {
  for (size_t count : {1, 15, 16, 100, 128, 130, 255, 700}) {
    for (bool steps_each : {false, true}) test_block_quantize(kernels, format, block, count, steps_each);
  }
  for (size_t blocks : {1, 2, 3, 5, 9, 37}) {
    for (size_t rows = kernels.blocks->rows; rows <= kPartRows; rows *= 2) {
      for (size_t tokens : {1, 2, 3, 4, 5, 6, 9, 21}) {
        const int kind = static_cast<int>((blocks + tokens) % 3);
        if (blocks >= 37 && tokens >= 4) continue;
        test_block_multiply(kernels, {format, block, blocks, rows, tokens, kind});
        if (format == kInt4) test_block_multiply(kernels, {format, block, blocks, rows, tokens, kind}, true);
      }
    }
  }
  test_block_multiply(kernels, {format, block, 3, kPartRows, kPartTokens, 0});
  if (format == kInt4) test_block_multiply(kernels, {format, block, 3, kPartRows, kPartTokens, 0}, true);
}

}  // namespace

#include "attention_tests.h"

namespace {

void test_all(const Kernels& kernels) {
  const int before = checks, failed = failures;
  test_products(kernels);
  test_sparse(kernels);
  test_blocks(kernels, kTernary, kBlock);
  for (Format format : {kInt4, kInt8Blocks}) {
    for (size_t block : {16, 32, 64, 128, 256}) test_blocks(kernels, format, block);
  }
  test_attention(kernels);
  for (size_t count : {1, 5, 127, 128, 129, 300, 2560}) {
    for (float scale : {8.0f, 1e-42f, 0.0f, 1e38f}) {
      for (int mode = 0; mode < 8; ++mode) test_quantize(kernels, count, scale, mode);
    }
  }
  for (size_t rows = 1; rows <= kMostPanelRows; ++rows) {
    for (int mode = 0; mode < 4; ++mode) test_finish(kernels, rows, (mode & 1) != 0, (mode & 2) != 0);
  }
  std::printf("%s: %d checks, %s\n", kernels.name, checks - before, failures == failed ? "exact" : "FAILED");
}

}  // namespace

int main(int count, char** names) {
  std::setvbuf(stdout, nullptr, _IOLBF, 0);
  std::vector<const char*> ran;
  for (size_t i = 0; i < kCandidateCount; ++i) {
    if (!kCandidates[i].supported()) continue;
    test_all(*kCandidates[i].kernels);
    ran.push_back(kCandidates[i].kernels->name);
  }
#if defined(EDGEKIT_TEST_EVEX)
  std::printf("in AVX512's encoding: ");
  test_all(kAvxVnni);
#endif
  for (int i = 1; i < count; ++i) {
    bool found = false;
    for (const char* name : ran) found |= same_text(name, names[i]);
    if (!found) ++failures, std::printf("%s: was not run, this processor has none\n", names[i]);
  }
  return failures != 0;
}
