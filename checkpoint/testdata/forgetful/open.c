/* In place of pagefilter/gate.c: CRIU opens images as soon as it is asked to. */
#include "../../pagefilter/gate.h"

int podd_pass_gate(const char *path)
{
	(void)path;
	return 0;
}
