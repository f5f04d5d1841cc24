// What compilers call on their own and a C library would provide. Hidden: nobody else gets these.
#include <stddef.h>

// A plain loop would be recognized as the very function it stands in.
#if defined(__clang__)
#define EK_AS_WRITTEN __attribute__((no_builtin))
#else
#define EK_AS_WRITTEN __attribute__((optimize("no-tree-loop-distribute-patterns")))
#endif
#define EK_HIDDEN __attribute__((visibility("hidden"), used))

namespace {
typedef unsigned char Sixteen __attribute__((vector_size(16), aligned(1), may_alias));
}

extern "C" {
EK_HIDDEN EK_AS_WRITTEN void* memcpy(void* to, const void* from, size_t size) {
  char* a = static_cast<char*>(to);
  const char* b = static_cast<const char*>(from);
  for (; size >= 16; size -= 16, a += 16, b += 16) {
    *reinterpret_cast<Sixteen*>(a) = *reinterpret_cast<const Sixteen*>(b);
  }
  for (size_t i = 0; i < size; ++i) a[i] = b[i];
  return to;
}
EK_HIDDEN EK_AS_WRITTEN void* memset(void* to, int value, size_t size) {
  char* a = static_cast<char*>(to);
  const Sixteen filled = static_cast<unsigned char>(value) - Sixteen{};
  for (; size >= 16; size -= 16, a += 16) *reinterpret_cast<Sixteen*>(a) = filled;
  for (size_t i = 0; i < size; ++i) a[i] = static_cast<char>(value);
  return to;
}
EK_HIDDEN EK_AS_WRITTEN void* memmove(void* to, const void* from, size_t size) {
  char* a = static_cast<char*>(to);
  const char* b = static_cast<const char*>(from);
  for (size_t i = 0; i < size; ++i) {
    const size_t at = a < b ? i : size - 1 - i;
    a[at] = b[at];
  }
  return to;
}

#if defined(__ARM_EABI__)
// 32-bit ARM has names of its own for them, and memset's arguments in another order.
EK_HIDDEN void __aeabi_memcpy(void* to, const void* from, size_t size) { memcpy(to, from, size); }
EK_HIDDEN void __aeabi_memcpy4(void* to, const void* from, size_t size) { memcpy(to, from, size); }
EK_HIDDEN void __aeabi_memcpy8(void* to, const void* from, size_t size) { memcpy(to, from, size); }
EK_HIDDEN void __aeabi_memset(void* to, size_t size, int value) { memset(to, value, size); }
EK_HIDDEN void __aeabi_memclr(void* to, size_t size) { memset(to, 0, size); }
EK_HIDDEN void __aeabi_memclr4(void* to, size_t size) { memset(to, 0, size); }
EK_HIDDEN void __aeabi_memclr8(void* to, size_t size) { memset(to, 0, size); }
#endif
}
