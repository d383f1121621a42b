/*
 * base.h - what every file of weightfs may use: attributes, cleanup on scope
 * exit, arithmetic that says when it overflows. No types of the domain here.
 *
 * All sizes and offsets in weightfs are bytes in a uint64_t. A sum or product
 * of numbers that come from outside (a header, a database, a request) goes
 * through wfs_add / wfs_mul.
 */
#ifndef WFS_BASE_H
#define WFS_BASE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define WFS_PRINTF(fmt, args) __attribute__((format(printf, fmt, args)))
#define WFS_WARN_UNUSED __attribute__((warn_unused_result))
#define WFS_ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))

#define WFS_MIN(a, b) ((a) < (b) ? (a) : (b))
#define WFS_MAX(a, b) ((a) > (b) ? (a) : (b))

/* Run a release function when the variable goes out of scope. Memory and file
 * descriptors only: a lock is released where the reader can see it. */
#define WFS_CLEANUP(fn) __attribute__((cleanup(fn)))

static inline void wfs_cleanup_free(void *p)
{
	free(*(void **)p);
}

static inline void wfs_cleanup_close(const int *fd)
{
	if (*fd >= 0)
		close(*fd);
}

#define WFS_AUTO_FREE WFS_CLEANUP(wfs_cleanup_free)
#define WFS_AUTO_CLOSE WFS_CLEANUP(wfs_cleanup_close)

/* True, and *ret unusable, if the result does not fit in 64 bits. */
static inline bool wfs_add_overflows(uint64_t a, uint64_t b, uint64_t *ret)
{
	return __builtin_add_overflow(a, b, ret);
}

static inline bool wfs_mul_overflows(uint64_t a, uint64_t b, uint64_t *ret)
{
	return __builtin_mul_overflow(a, b, ret);
}

/* Also where both are NULL. */
static inline bool wfs_is_same_text(const char *a, const char *b)
{
	return a && b ? strcmp(a, b) == 0 : a == b;
}

#endif
