/*
 * seal.h - dirty to sealed.
 *
 * The content is split into objects (anything that parses as a valid
 * safetensors file: its header, then each tensor that is not empty; an .npy file of
 * lib/npy.h: its header and its data; anything else: one object), each is hashed, looked up, compared byte for byte with
 * what has the same digest, and shared or recorded. The staging data file
 * becomes the pack: nothing is copied, except that a small rest (all of a
 * file up to WFS_SMALL_FILE, or up to WFS_SMALL_REST that is left over beside
 * shared objects) moves to the database. The data file is on the disk before
 * the transaction that seals is committed.
 *
 * No lock is held while bytes are read. A writer that opens the file makes the
 * seal stop. May be called from any thread; not twice for one file at once
 * (the second gets -EBUSY).
 */
#ifndef WFS_SEAL_H
#define WFS_SEAL_H

#include "lib/base.h"
#include "lib/err.h"
#include "lib/name.h"
#include "lib/store.h"

#define WFS_SMALL_FILE 65536          /* bytes: a file up to this size is kept in the database */
#define WFS_SMALL_REST (256 * 1024)   /* bytes: what a file of shared objects may leave there */
#define WFS_MAX_PIECES (1u << 20)     /* more tensors than this are sealed as one object */
#define WFS_MAX_HOLES (UINT64_C(16) << 30) /* bytes of holes past which a file stays dirty */

/*
 * Seal inode `ino`. 0: sealed now, or it was already, or it is gone.
 * -EBUSY: somebody writes or seals it: try again when they are done.
 * -EFBIG: too sparse to be hashed; it stays dirty. Other: -errno with *err;
 * the file is dirty and whole as before. With reason sync-failed it stays so:
 * it was reported when that happened (docs/decisions/0020).
 */
int wfs_seal(struct wfs_store *s, uint64_t ino, struct wfs_err *err);

#define WFS_SEAL_AT_ONCE 32 /* small files in one transaction, at most */

/*
 * Seal those of up to WFS_SEAL_AT_ONCE inodes that are small files, with few
 * transactions. What is sealed now, or was, or is gone, is taken out of `inos`; *n is
 * what is left there: larger, in use or in trouble, all for wfs_seal.
 */
void wfs_seal_small(struct wfs_store *s, uint64_t *inos, size_t *n);

/* Inodes that are dirty now, in order; the caller frees *ret. */
int wfs_seal_list(struct wfs_store *s, uint64_t **ret, size_t *ret_n);

/*
 * Call `fn` for each inode that is dirty now and still there, in order, with its attributes (a->data_file
 * is its staging file), until it returns something else than 0, which is returned.
 */
int wfs_seal_each(struct wfs_store *s,
	int (*fn)(struct wfs_store *s, const struct wfs_attr *a, void *ctx), void *ctx);

#endif
