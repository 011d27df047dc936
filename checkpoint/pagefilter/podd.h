/* How the library reaches podd. See podd.c. */
#include <stddef.h>
#include <stdint.h>

/* The table whose descriptor a variable names, if it has this magic number and at least so many bytes;
 * else NULL. */
__attribute__((visibility("hidden"))) void *podd_table(const char *variable, uint64_t magic, size_t least, uint64_t *size);

/* A connection to a socket of podd's in a directory, or -1. */
__attribute__((visibility("hidden"))) int podd_connect(int dir, const char *name);
