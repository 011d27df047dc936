#include <stdint.h>

/* In a restore: CRIU, in a process that it makes, opens an image. See userfault.c. */
void podd_open_image(int dir, const char *path);

/* In a dump: the first address at or above this one of a page that is CRIU's to carry in the process
 * that it dumps, whatever is left out; UINT64_MAX if there is none. See rseq.c. */
uint64_t podd_kept_page(uint64_t address);
