/* Stands in for Android's libc.so when linking without an NDK; never shipped, never run. These are the functions that
   src/processor.cpp takes from it; the linker then writes "needs libc.so" into the library. */
char* getenv(const char* name) { return (char*)name; }
unsigned long getauxval(unsigned long type) { return type; }
