/*
 * manifest.h - lists of objects that are the contents of sealed files.
 *
 * As lib/object.h: within a transaction, no locks, 0 or -errno.
 */
#ifndef WFS_MANIFEST_H
#define WFS_MANIFEST_H

#include "lib/base.h"
#include "lib/db.h"

/*
 * The manifest of these objects in this order, with one more reference. An
 * equal one is shared; then *ret_shared is true and the objects' counts stay.
 * Else it is recorded, and each object referenced once for each time it is in
 * ids[]. -ESTALE if an object is gone. `size` is the sum of the lengths, n > 0.
 */
int wfs_manifest_put(struct wfs_db *db, const uint64_t *ids, size_t n, uint64_t size,
	uint64_t *ret_id, bool *ret_shared);

/* All its objects live one behind the other in one data file, from offset 0 (column `solid`). */
int wfs_manifest_set_solid(struct wfs_db *db, uint64_t id);

/* Is there a live manifest of exactly these objects? 1, 0 or -errno. */
int wfs_manifest_find(struct wfs_db *db, const uint64_t *ids, size_t n);

/* One more, one fewer inode names it. At 0 it is dead: wfs_manifest_dismantle. */
int wfs_manifest_ref(struct wfs_db *db, uint64_t id);
int wfs_manifest_unref(struct wfs_db *db, uint64_t id);

/*
 * Take up to `max` objects off the end of a dead manifest and drop their
 * references; with the last its row goes, and its whole copy dies where that is not
 * also where objects live. 1: there is more; 0: done. *ret_left becomes true if others
 * have one of these objects: it may be one file's alone now (wfs_whole_settle).
 */
int wfs_manifest_dismantle(struct wfs_db *db, uint64_t id, size_t max, bool *ret_left);

/* The ids of its objects in order; the caller frees *ret. */
int wfs_manifest_ids(struct wfs_db *db, uint64_t id, uint64_t **ret, size_t *ret_n);

/*
 * True (1) if `data_file` could become staging again for the one inode that
 * names manifest `id`: nobody else names the manifest, and everything in the
 * data file is in this manifest alone. The file may be its whole copy.
 */
int wfs_manifest_owns(struct wfs_db *db, uint64_t id, uint64_t data_file);

#endif
