/* What Windows calls when it loads or unloads the library. A C runtime would bring one; there is nothing to set up. */
int _DllMainCRTStartup(void* library, unsigned long reason, void* reserved) {
  (void)library, (void)reason, (void)reserved;
  return 1; /* TRUE: loaded */
}
