/* What pagefilter.c has of fdinfo.c. */
#include <stdint.h>

#define LOCAL __attribute__((visibility("hidden")))

/* CRIU has opened something, which may be /proc/self by that name. */
LOCAL void podd_opened(int fd, int is_self);

/* A file with what CRIU reads of one in /proc/self/fdinfo, or -1: it has to open that one. */
LOCAL int podd_open_fdinfo(int dir, const char *path);
