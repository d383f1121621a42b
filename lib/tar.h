/*
 * tar.h - write a tar file (POSIX.1-2001, pax) with sparse members as GNU tar reads them
 * (https://www.gnu.org/software/tar/manual/html_node/PAX-1.html). Reads nothing. One thread.
 *
 * Names are short (below 100 bytes) and plain; owner and group are 0, modes 0600 and 0700.
 */
#ifndef WFS_TAR_H
#define WFS_TAR_H

#include <time.h>

#include "lib/base.h"

struct wfs_tar {
	int fd;
	uint64_t written; /* bytes, so far */
};

/* A range of a file with data in it. */
struct wfs_tar_range {
	uint64_t offset, length;
};

int wfs_tar_directory(struct wfs_tar *t, const char *name);

/*
 * Begin a file of `size` bytes: of it only the ranges (n of them, in order) are stored, their
 * bytes to be given to wfs_tar_bytes one after the other, and then wfs_tar_end_file.
 */
int wfs_tar_begin_file(struct wfs_tar *t, const char *name, uint64_t size,
	const struct timespec *mtime, const struct wfs_tar_range *ranges, size_t n);
int wfs_tar_bytes(struct wfs_tar *t, const void *bytes, size_t len);
int wfs_tar_end_file(struct wfs_tar *t);

/* The two empty blocks behind the last member. */
int wfs_tar_end(struct wfs_tar *t);

#endif
