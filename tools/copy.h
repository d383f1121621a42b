/*
 * copy.h - bytes from one descriptor to another, for `weightfs cat` and `put`.
 */
#ifndef WFS_TOOLS_COPY_H
#define WFS_TOOLS_COPY_H

#include "lib/base.h"

/* From where to where; the names are for messages. */
struct copy {
	int from;
	const char *from_name;
	int to;
	const char *to_name;
};

/* All of len bytes to `to`. 0 or -errno. */
int copy_write(int to, const void *buf, size_t len);

/* The first bytes of a file, a pipe or whatever: len, or all that there are. How many, or -errno.
 */
ssize_t copy_read(int from, void *buf, size_t len);

/* From where `from` stands to its end. 0, or 1 with the error printed. */
int copy_bytes(const struct copy *c);

#endif
