/*
 * whole.h - whole copies: a data file that has all of a manifest's content, in order
 * from offset 0, while objects of it live elsewhere (columns `whole` and `shared` of
 * table manifest).
 *
 * A data file is the whole copy of one manifest at most, and a pack; for as long as
 * it is one, it is neither removed nor punched. As lib/object.h: within a
 * transaction, no locks, 0 or -errno.
 */
#ifndef WFS_WHOLE_H
#define WFS_WHOLE_H

#include "lib/base.h"
#include "lib/db.h"

/*
 * The pack `data_file` is the whole copy of a live manifest that has none. `shared`:
 * bytes of it that are disk blocks of other extents; the rest is stored twice.
 */
int wfs_whole_set(struct wfs_db *db, uint64_t manifest, uint64_t data_file, uint64_t shared);

/* The manifest whose whole copy `data_file` is: 1, 0 or -errno. */
int wfs_whole_of(struct wfs_db *db, uint64_t data_file, uint64_t *ret_manifest);

/* Those of `from` become those of `to`, a copy of that file. */
int wfs_whole_move(struct wfs_db *db, uint64_t from, uint64_t to);

/*
 * Let each object whose only references are in this manifest live in its whole
 * copy: what it had elsewhere died. So no byte is stored twice for a file that is
 * gone; and once all of them live there, in order, it is the manifest's own data file,
 * and no copy. Nothing to do where there is no whole copy, or nobody names the manifest.
 * `block`: bytes of a disk block that can be shared.
 */
int wfs_whole_settle(struct wfs_db *db, uint64_t manifest, uint64_t block);

/* The next manifest with a whole copy behind data file `*after` (0: the first), which moves on. 1, 0 or -errno. */
int wfs_whole_next(struct wfs_db *db, uint64_t *after, uint64_t *ret_manifest);

#endif
