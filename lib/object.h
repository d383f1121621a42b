/*
 * object.h - rows of table object: find, record, count references.
 *
 * All functions need a transaction of lib/db.h (they take no lock), return 0
 * or -errno (where said 1/0), and leave the transaction to be rolled back by
 * the caller on error.
 */
#ifndef WFS_OBJECT_H
#define WFS_OBJECT_H

#include "lib/base.h"
#include "lib/db.h"
#include "lib/digest.h"

/* Where an object lives: its one extent. */
struct wfs_object {
	uint64_t id;
	uint64_t ordinal;   /* among those with its digest */
	uint64_t data_file; /* 0: the bytes are in the database */
	uint64_t offset;    /* in the data file */
	uint64_t length;    /* bytes, > 0 */
};

/*
 * The next object with this digest and length whose ordinal is greater than
 * `after` (-1: the first). 1, 0 or -errno.
 */
int wfs_object_find(struct wfs_db *db, const struct wfs_digest *digest, uint64_t length,
	int64_t after, struct wfs_object *ret);

/*
 * Record a new object with refs 0: at (data_file, offset), or with `bytes`
 * (not NULL) in the database. Sets o->id and o->ordinal. Its length is
 * o->length.
 */
int wfs_object_insert(struct wfs_db *db, const struct wfs_digest *digest, struct wfs_object *o,
	const void *bytes);

/* Add n references. -ESTALE if the object is gone: look it up again. */
int wfs_object_ref(struct wfs_db *db, uint64_t id, uint64_t n);

/*
 * Drop one reference. 1: others have it; 0: that was the last, the rows are gone, and
 * *ret_data_file is where a range died (else 0; the caller tells wfs_object_died_in
 * for each file once); -errno.
 */
int wfs_object_unref(struct wfs_db *db, uint64_t id, uint64_t *ret_data_file);

/* Ranges of this pack died: doom it if nothing is alive in it and it is no whole copy, else have it punched. */
int wfs_object_died_in(struct wfs_db *db, uint64_t data_file);

#endif
