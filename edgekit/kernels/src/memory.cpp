// What compilers call on their own and a C library would provide. Hidden: nobody else gets these.
#include <stddef.h>

// A plain loop would be recognized as the very function it stands in.
#if defined(__clang__)
#define EK_AS_WRITTEN __attribute__((no_builtin))
#else
#define EK_AS_WRITTEN __attribute__((optimize("no-tree-loop-distribute-patterns")))
#endif
#define EK_HIDDEN __attribute__((visibility("hidden"), used))

extern "C" {
EK_HIDDEN EK_AS_WRITTEN void* memcpy(void* to, const void* from, size_t size) {
  for (size_t i = 0; i < size; ++i) static_cast<char*>(to)[i] = static_cast<const char*>(from)[i];
  return to;
}
EK_HIDDEN EK_AS_WRITTEN void* memset(void* to, int value, size_t size) {
  for (size_t i = 0; i < size; ++i) static_cast<char*>(to)[i] = static_cast<char>(value);
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
}
