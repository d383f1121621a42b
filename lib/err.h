/*
 * err.h - the reason beside an error number.
 *
 * Functions of weightfs return 0 or -errno. Where a person will want to know
 * more, they also take an optional `struct wfs_err *` (NULL is allowed
 * everywhere), which the deepest function that knows fills once: the first
 * reason wins, callers on the way up do not overwrite it.
 *
 * A wfs_err lives in the caller's storage, holds no pointers to free, and is
 * used by one thread at a time.
 */
#ifndef WFS_ERR_H
#define WFS_ERR_H

#include "lib/base.h"

/* wfs_err.offset when no place in the input is meant. */
#define WFS_NO_OFFSET UINT64_MAX

struct wfs_err {
	const char *reason; /* stable name for tests and --json, static storage; NULL while unset */
	uint64_t offset;    /* bytes from the start of the file that is wrong, or WFS_NO_OFFSET */
	char text[240];     /* one line, lower case, no newline, names the object */
};

#define WFS_ERR_INIT { .reason = NULL, .offset = WFS_NO_OFFSET, .text = "" }

/* Forget what was said, so that `err` can be used again. */
void wfs_err_clear(struct wfs_err *err);

/*
 * Say why, and return `ret` so that `return wfs_err_set(err, -EBADMSG, …)` is
 * one statement. `reason` must have static storage. Nothing is stored if err
 * is NULL or already holds a reason. Text that is too long is cut, and bytes
 * that would break a line (control characters) are shown as '?'.
 */
int wfs_err_set(struct wfs_err *err, int ret, const char *reason, uint64_t offset,
	const char *fmt, ...) WFS_PRINTF(5, 6);

/* The same for a failed system call: reason "io", text "WHAT: strerror". */
int wfs_err_errno(struct wfs_err *err, int ret, const char *fmt, ...) WFS_PRINTF(3, 4);

#ifdef WFS_ANALYSIS
/* Static analysis looks at one file at a time, and cannot know that what fails here is not 0 there. */
#define wfs_err_set(err, ret, ...) ((wfs_err_set)(err, ret, __VA_ARGS__), (ret))
#define wfs_err_errno(err, ret, ...) ((wfs_err_errno)(err, ret, __VA_ARGS__), (ret))
#endif

#endif
