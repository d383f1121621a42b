#include "fs/strict.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "fs/fuse.h"

static void judge(enum fuse_log_level level, const char *fmt, va_list ap)
{
	vfprintf(stderr, fmt, ap);
	if (level <= FUSE_LOG_ERR)
		abort();
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
		abort();
}

#endif
