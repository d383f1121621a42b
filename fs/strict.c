#include "fs/strict.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)

#include <errno.h>
#include <sanitizer/common_interface_defs.h>
#include <stdio.h>
#include <stdlib.h>

#include "fs/fuse.h"

/* With a report: the standard error of a driver is nobody's. */
static void end(void)
{
	__sanitizer_print_stack_trace();
	abort();
}

static void judge(enum fuse_log_level level, const char *fmt, va_list ap)
{
	vfprintf(stderr, fmt, ap);
	if (level <= FUSE_LOG_ERR)
		end();
}

void wfs_strict_begin(void)
{
	fuse_set_log_func(judge);
}

void wfs_strict_end(void)
{
	fuse_set_log_func(NULL);
}

/* The kernel says EINVAL of a length or an error that cannot be; ENOENT where nobody waits any more. */
void wfs_strict_answer(ssize_t n)
{
	if (n < 0 && errno == EINVAL)
		end();
}

#endif
