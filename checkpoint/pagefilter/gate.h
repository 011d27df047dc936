/* In a restore: CRIU opens a file. Returns 0 if it may, or -1 with errno. See gate.c. */
__attribute__((visibility("hidden"))) int podd_pass_gate(const char *path);
