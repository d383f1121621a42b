/*
 * strict.h - builds with a sanitizer end where libfuse or the kernel finds an answer wrong.
 *
 * Elsewhere that is a line on a standard error which a driver in the background
 * has not, and an operation that fails for no reason that one could find.
 */
#ifndef WFS_STRICT_H
#define WFS_STRICT_H

#include <sys/types.h>

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)

/* Around the time in which requests are served: what libfuse calls an error there is a mistake of ours. */
void wfs_strict_begin(void);
void wfs_strict_end(void);
/* What writev(2) of an answer returned, with errno. */
void wfs_strict_answer(ssize_t n);

#else

static inline void wfs_strict_begin(void)
{
}

static inline void wfs_strict_end(void)
{
}

static inline void wfs_strict_answer(ssize_t n)
{
	(void)n;
}

#endif

#endif
