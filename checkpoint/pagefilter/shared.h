/* What pagefilter.c and shared.c have of one another. */
#include <sys/types.h>

#define LOCAL __attribute__((visibility("hidden")))

/* Opens the image of a segment whose content is not in the images, or returns -1. */
LOCAL int open_shared(int dir, const char *path, int flags);

/* Whether a link in /proc/PID/map_files is of a memfd that is sealed against writing. */
LOCAL int write_sealed(int dir, const char *link);
