/*
 * npy_priv.h - between npy.c, npy_header.c and npy_order.c.
 *
 * npy_header.c reads the Python text of a header by itself. npy.c does what comes
 * before (magic, version, length) and after (sizes), and builds. npy_order.c is
 * about the data.
 */
#ifndef WFS_NPY_PRIV_H
#define WFS_NPY_PRIV_H

#include "lib/npy.h"

struct wfs_npy_text {
	const char *at;	 /* borrowed, not terminated */
	size_t len;	 /* bytes of it that the file has */
	bool whole;	 /* that is all of the header */
	bool python2;	 /* numbers may end in L: versions 1.0 and 2.0 */
	uint64_t offset; /* where it begins, bytes from the start of the file */
};

/*
 * Set dtype, big_endian, fortran_order, ndim and shape of *npy. 0, or -EBADMSG with
 * a reason of wfs_npy_parse, npy-header and those below it; *npy is then unusable.
 * The dimensions are not multiplied here.
 */
int wfs_npy_read_header(
	const struct wfs_npy_text *text, struct wfs_npy *npy, struct wfs_err *err) WFS_WARN_UNUSED;

/* How much wfs_npy_to_c takes at a time. Tests make it small. All bytes. */
struct wfs_npy_room {
	size_t tile;  /* of what is written at once; 8 or more */
	size_t stage; /* of what is read at once; 8 or more */
	size_t gap;   /* read rather than skipped, if it is that or less */
};

/* wfs_npy_to_c with other sizes than its own. */
int wfs_npy_to_c_within(const struct wfs_npy *npy, const struct wfs_npy_room *room,
	ssize_t (*read_at)(void *ctx, void *buf, size_t len, uint64_t offset),
	int (*append)(void *ctx, const void *buf, size_t len), void *ctx) WFS_WARN_UNUSED;

#endif
