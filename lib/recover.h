/*
 * recover.h - what an unclean stop left behind. Called by wfs_store_open and
 * wfs_store_close alone.
 */
#ifndef WFS_RECOVER_H
#define WFS_RECOVER_H

#include "lib/base.h"
#include "lib/err.h"
#include "lib/store.h"

/*
 * After a clean stop: nothing to do. Else: drop inodes without a name, doom
 * data files that an unseal was filling, remove a data file whose row was not
 * committed, judge dirty files again, report those whose data file is gone as
 * damaged. Dirty files keep their bytes and are for the caller to seal
 * (wfs_seal_list). Time in proportion to what was in flight.
 */
int wfs_recover(struct wfs_store *s, struct wfs_err *err);

/* What the last recovery met: rows of table meta, and what `weightfs status` says of it. */
#define WFS_META_RECOVERED_NS "recovered_ns" /* when that was */
#define WFS_META_RECOVERED_UNLINKED "recovered_unlinked"
#define WFS_META_RECOVERED_DIRTY "recovered_dirty"
#define WFS_META_RECOVERED_REPORTED "recovered_reported"

struct wfs_recovery {
	int64_t when_ns;   /* since 1970; 0: the store was always unmounted in order */
	uint64_t unlinked; /* files without a name that were dropped */
	uint64_t dirty;    /* files that were not sealed, and came back with their bytes */
	uint64_t reported; /* of these: bytes are lost, or may be */
};

int wfs_recovery_read(struct wfs_store *s, struct wfs_recovery *ret);

/* Drop every inode that has no name. Nobody may have a file in use. */
int wfs_recover_orphans(struct wfs_store *s);

/* Remove data files that were made in a transaction that was not committed (a crash, a full disk). */
int wfs_recover_uncommitted(struct wfs_store *s);

/* Doom data files that nobody fills any more. */
int wfs_recover_filling(struct wfs_store *s);

/* Make the bytes of every dirty file durable. */
int wfs_recover_flush_dirty(struct wfs_store *s);

#endif
