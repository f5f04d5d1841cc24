#include "processor.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

// Linux: from the process when it has them, so that the library depends on no C library of any version.
#if defined(__linux__) && !defined(__ANDROID__)
#define EK_LIBC __attribute__((weak))
#define EK_CALL_LIBC(function, missing, ...) (function ? function(__VA_ARGS__) : (missing))
#else
#define EK_LIBC
#define EK_CALL_LIBC(function, missing, ...) function(__VA_ARGS__)
#endif

extern "C" {
#if defined(_WIN32)
__declspec(dllimport) unsigned long GetEnvironmentVariableA(const char*, char*, unsigned long);
#else
EK_LIBC char* getenv(const char*);
#endif
#if defined(__linux__) && defined(__aarch64__)
EK_LIBC unsigned long getauxval(unsigned long);
#elif defined(__APPLE__) && defined(__aarch64__)
int sysctlbyname(const char*, void*, size_t*, void*, size_t);
#endif
}

namespace edgekit {
namespace {

bool always() { return true; }

#if defined(__x86_64__)
uint32_t leaf(unsigned number, unsigned sub, int index) {
  unsigned r[4] = {0, 0, 0, 0};
  if (__get_cpuid_count(number, sub, &r[0], &r[1], &r[2], &r[3]) == 0) return 0;
  return r[index];
}
// Whether the operating system saves these registers: bits of XCR0.
bool saved(uint32_t bits) {
  if ((leaf(1, 0, 2) >> 27 & 1) == 0) return false;
  uint32_t low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (low & bits) == bits;
}
bool has_avx2() {
  constexpr uint32_t kOlder = 1u << 12 | 1u << 23 | 1u << 29;  // FMA, POPCNT and F16C
  return (leaf(7, 0, 1) >> 5 & 1) && (leaf(1, 0, 2) & kOlder) == kOlder && saved(0x06);
}
bool has_avxvnni() { return has_avx2() && (leaf(7, 1, 0) >> 4 & 1); }
bool has_avx512vnni() {
  constexpr uint32_t kFoundation = 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31;  // F, DQ, BW, VL
  return has_avx2() && (leaf(7, 0, 1) & kFoundation) == kFoundation && (leaf(7, 0, 2) >> 11 & 1) && saved(0xE6);
}
bool has_avx512vbmi2() { return has_avx512vnni() && (leaf(7, 0, 2) >> 6 & 1); }
#elif defined(__aarch64__) && defined(__linux__)
unsigned long capabilities(unsigned long kind) { return EK_CALL_LIBC(getauxval, 0ul, kind); }
bool has_dotprod() { return capabilities(16) >> 20 & 1; }                  // AT_HWCAP, ASIMDDP
bool has_i8mm() { return has_dotprod() && (capabilities(26) >> 13 & 1); }  // AT_HWCAP2, I8MM
#elif defined(__aarch64__) && defined(__APPLE__)
bool feature(const char* name) {
  int value = 0;
  size_t size = sizeof value;
  return sysctlbyname(name, &value, &size, nullptr, 0) == 0 && value;
}
bool has_dotprod() { return feature("hw.optional.arm.FEAT_DotProd"); }
bool has_i8mm() { return has_dotprod() && feature("hw.optional.arm.FEAT_I8MM"); }
#endif

}  // namespace

const Candidate kCandidates[] = {
#if defined(__x86_64__)
    {&kAvx512Vbmi2, has_avx512vbmi2},
    {&kAvx512Vnni, has_avx512vnni},
    {&kAvxVnni, has_avxvnni},
    {&kAvx2, has_avx2},
#elif defined(__aarch64__)
    {&kNeonI8mm, has_i8mm},
    {&kNeonDotprod, has_dotprod},
    {&kNeon, always},
#elif defined(__ARM_NEON)
    {&kNeon, always},  // Android's armeabi-v7a requires it
#endif
    {&kScalar, always},
};
const size_t kCandidateCount = sizeof kCandidates / sizeof kCandidates[0];

bool same_text(const char* a, const char* b) {
  while (*a && *a == *b) ++a, ++b;
  return *a == *b;
}

const char* forced() {
#if defined(_WIN32)
  static char value[32];
  const unsigned long length = GetEnvironmentVariableA("EDGEKIT_ISA", value, sizeof value);
  if (length >= sizeof value) return "(too long)";
  const char* found = length ? value : nullptr;
#else
  const char* found = EK_CALL_LIBC(getenv, nullptr, "EDGEKIT_ISA");
#endif
  return found && *found ? found : nullptr;
}

const Kernels* choose() {
  const char* name = forced();
  for (const Candidate& candidate : kCandidates) {
    if (candidate.supported() && (name == nullptr || same_text(name, candidate.kernels->name)))
      return candidate.kernels;
  }
  return nullptr;
}

}  // namespace edgekit
