/*
 * verify_read.h - private to lib/verify*.c and lib/repair.c: one thread reads ranges of data files,
 * in large pieces, past the page cache or without leaving traces in it, and hashes them.
 */
#ifndef WFS_VERIFY_READ_H
#define WFS_VERIFY_READ_H

#include <stdatomic.h>

#include "lib/damage.h"
#include "lib/datafile.h"
#include "lib/digest.h"

#define WFS_VERIFY_WINDOW ((size_t)4 << 20) /* bytes read at once */

struct wfs_verify_reader {
	struct wfs_datafiles *table;
	/* Called with the bytes of each piece, before they are hashed: may wait; not 0 ends it with that. NULL: never. */
	int (*before)(void *ctx, uint64_t bytes);
	void *ctx;
	uint8_t *buf;      /* a window, aligned */
	uint64_t file;     /* that fd is open on; 0: none */
	int fd;            /* -errno of the open */
	bool is_direct;
	uint64_t at, len;  /* of the file, what is in buf */
};

/* -ENOMEM. release in any case. */
int wfs_verify_reader_init(struct wfs_verify_reader *r, struct wfs_datafiles *table);
void wfs_verify_reader_release(struct wfs_verify_reader *r);

/* Read anew from here on, whatever is in the window. */
void wfs_verify_reader_forget(struct wfs_verify_reader *r);

/*
 * The digest of [offset, +length) of a data file: WFS_DAMAGE_NONE with *ret, or why it cannot be read; -errno
 * of `before`.
 */
int wfs_verify_digest(struct wfs_verify_reader *r, uint64_t file, uint64_t offset, uint64_t length,
	unsigned bits, struct wfs_digest *ret);

#endif
