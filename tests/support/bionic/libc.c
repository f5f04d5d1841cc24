// Android's libc.so, libm.so and libdl.so for a process that runs on glibc.
//
// What means the same in both C libraries jumps straight to glibc: the list forwards.h, which shim.py generates.
// What does not is written out below. Functions carry the version LIBC, as bionic's do.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <libgen.h>
#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/select.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <wchar.h>

// Defined under another name: a function called here is glibc's, never the shim's own.
#define VERSIONED(name) __asm__(".symver shim_" #name "," #name "@LIBC")
#define BIONIC(type, name, parameters) \
  VERSIONED(name);                     \
  type shim_##name parameters

static const char* const names[] = {
#define FORWARD(index, name, target) #target,
#include "forwards.h"
#undef FORWARD
};
enum { COUNT = sizeof names / sizeof *names };

__attribute__((visibility("hidden"), used)) void* glibc_functions[COUNT];

// Registers that hold no argument; a call with `...` arrives as it was made.
#if defined(__x86_64__)
#define JUMP(index) "movq glibc_functions+8*" #index "(%rip),%r11\n jmp *%r11\n"
#elif defined(__aarch64__)
#define JUMP(index) \
  "adrp x16,glibc_functions+8*" #index "\n ldr x16,[x16,:lo12:glibc_functions+8*" #index "]\n br x16\n"
#endif
#define FORWARD(index, name, target)                                                                \
  __asm__(".text\n.balign 16\n.globl shim_" #name "\n.type shim_" #name ",%function\nshim_" #name ":\n " JUMP( \
      index) ".symver shim_" #name "," #name "@LIBC\n");
#include "forwards.h"
#undef FORWARD

FILE *shim_stdin, *shim_stdout, *shim_stderr;
VERSIONED(stdin);
VERSIONED(stdout);
VERSIONED(stderr);

// The three streams as code for old Android has them: an array of objects, whose size was part of the ABI.
enum { OLD_FILE = 152 };
char shim___sF[3 * OLD_FILE];
VERSIONED(__sF);

static FILE* stream(FILE* given) {
  const uintptr_t at = (uintptr_t)given - (uintptr_t)shim___sF;
  if (at >= sizeof shim___sF) return given;
  return at < OLD_FILE ? stdin : at < 2 * OLD_FILE ? stdout : stderr;
}

__attribute__((constructor)) static void find_glibc_functions(void) {
  void* libraries[] = {dlopen("libc.so.6", RTLD_NOW), dlopen("libm.so.6", RTLD_NOW)};
  for (int i = 0; i < COUNT; ++i) {
    for (int k = 0; k < 2 && !glibc_functions[i]; ++k) glibc_functions[i] = dlsym(libraries[k], names[i]);
    if (!glibc_functions[i]) {
      fprintf(stderr, "bionic shim: glibc has no %s\n", names[i]);
      _exit(127);
    }
  }
  shim_stdin = stdin;
  shim_stdout = stdout;
  shim_stderr = stderr;
}

// What ONNX Runtime's C++ library writes, std::cout as well as a last message before abort, goes to the old streams.
BIONIC(int, vfprintf, (FILE * to, const char* format, va_list values)) { return vfprintf(stream(to), format, values); }
BIONIC(int, fputc, (int value, FILE* to)) { return fputc(value, stream(to)); }
BIONIC(wint_t, fputwc, (wchar_t value, FILE* to)) { return fputwc(value, stream(to)); }
BIONIC(int, fputs, (const char* text, FILE* to)) { return fputs(text, stream(to)); }
BIONIC(size_t, fwrite, (const void* data, size_t size, size_t count, FILE* to)) {
  return fwrite(data, size, count, stream(to));
}
BIONIC(int, fflush, (FILE * to)) { return fflush(to ? stream(to) : NULL); }
BIONIC(void, android_set_abort_message, (const char* message)) { fprintf(stderr, "abort: %s\n", message); }

BIONIC(int, __system_property_get, (const char* name, char* value)) {
  (void)name;
  *value = 0;
  return 0;
}

// The numbers are bionic's; glibc has others.
BIONIC(long, sysconf, (int name)) {
  switch (name) {
    case 6: return sysconf(_SC_CLK_TCK);
    case 39:
    case 40: return sysconf(_SC_PAGESIZE);
    case 96: return sysconf(_SC_NPROCESSORS_CONF);
    case 97: return sysconf(_SC_NPROCESSORS_ONLN);
    case 98: return sysconf(_SC_PHYS_PAGES);
    case 149: return sysconf(_SC_LEVEL2_CACHE_SIZE);
    default: fprintf(stderr, "bionic shim: sysconf(%d) is not known\n", name); errno = EINVAL; return -1;
  }
}
BIONIC(long, pathconf, (const char* path, int name)) {
  (void)path, (void)name;
  return PATH_MAX;
}

// bionic's leaves its argument as it is.
BIONIC(char*, dirname, (const char* path)) {
  static _Thread_local char copy[PATH_MAX];
  snprintf(copy, sizeof copy, "%s", path);
  return dirname(copy);
}

BIONIC(void, __FD_SET_chk, (int descriptor, fd_set* set, size_t size)) {
  (void)size;
  FD_SET(descriptor, set);
}
BIONIC(int, __FD_ISSET_chk, (int descriptor, const fd_set* set, size_t size)) {
  (void)size;
  return FD_ISSET(descriptor, set);
}

// A set of signals has 8 bytes there, 128 in glibc, which would write past the end.
BIONIC(int, sigfillset, (uint64_t * set)) {
  *set = ~UINT64_C(0);
  return 0;
}
BIONIC(int, pthread_sigmask, (int how, const uint64_t* set, uint64_t* old)) {
  return syscall(SYS_rt_sigprocmask, how, set, old, sizeof *set) ? errno : 0;
}

// 40 bytes; glibc's for 64-bit ARM has 48. The fields that glibc's lock and unlock use come first in both.
BIONIC(int, pthread_mutex_init, (int32_t * mutex, const int* attributes)) {
  memset(mutex, 0, 40);
  if (attributes) mutex[4] = *attributes & 3;  // the kinds have the same numbers
  return 0;
}

// bionic's condition is aligned to 4 bytes; glibc's needs 8. This one counts signals in its first word.
static long futex(int32_t* word, int operation, int32_t value, const struct timespec* until) {
  return syscall(SYS_futex, word, operation | FUTEX_PRIVATE_FLAG, value, until, NULL, FUTEX_BITSET_MATCH_ANY);
}
static int wait_until(int32_t* condition, pthread_mutex_t* mutex, const struct timespec* until) {
  const int32_t seen = __atomic_load_n(condition, __ATOMIC_SEQ_CST);
  pthread_mutex_unlock(mutex);
  const long result = futex(condition, FUTEX_WAIT_BITSET | FUTEX_CLOCK_REALTIME, seen, until);
  const int late = result < 0 && errno == ETIMEDOUT;
  pthread_mutex_lock(mutex);
  return late ? ETIMEDOUT : 0;
}
static int wake(int32_t* condition, int count) {
  __atomic_fetch_add(condition, 1, __ATOMIC_SEQ_CST);
  futex(condition, FUTEX_WAKE, count, NULL);
  return 0;
}
BIONIC(int, pthread_cond_wait, (int32_t * condition, pthread_mutex_t* mutex)) {
  return wait_until(condition, mutex, NULL);
}
BIONIC(int, pthread_cond_timedwait, (int32_t * condition, pthread_mutex_t* mutex, const struct timespec* until)) {
  return wait_until(condition, mutex, until);
}
BIONIC(int, pthread_cond_signal, (int32_t * condition)) { return wake(condition, 1); }
BIONIC(int, pthread_cond_broadcast, (int32_t * condition)) { return wake(condition, INT_MAX); }
BIONIC(int, pthread_cond_destroy, (int32_t * condition)) {
  (void)condition;
  return 0;
}

// 56 bytes; glibc's for 64-bit ARM has 64. Only the stack's size is ever set.
typedef struct {
  size_t stack_size;
  size_t unused[6];
} ThreadAttributes;
BIONIC(int, pthread_attr_init, (ThreadAttributes * attributes)) {
  memset(attributes, 0, sizeof *attributes);
  return 0;
}
BIONIC(int, pthread_attr_setstacksize, (ThreadAttributes * attributes, size_t size)) {
  attributes->stack_size = size;
  return 0;
}
BIONIC(int, pthread_create,
       (pthread_t * thread, const ThreadAttributes* attributes, void* (*function)(void*), void* argument)) {
  pthread_attr_t host;
  pthread_attr_init(&host);
  if (attributes && attributes->stack_size) pthread_attr_setstacksize(&host, attributes->stack_size);
  const int error = pthread_create(thread, &host, function, argument);
  pthread_attr_destroy(&host);
  return error;
}
