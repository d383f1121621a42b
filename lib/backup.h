/*
 * backup.h - a copy of a store, mounted or not, as another store or as one tar file.
 *
 * What is copied is one committed state of the database, and for each data file that it
 * names the bytes that it had in that state. While the copy is made the collector of the
 * mount is kept away (lib/hold.h). What else may change a data file is an open for writing
 * that takes a pack back as staging: after each file was copied the database is asked
 * whether all that was to be found there is there still, and if not, the whole begins
 * anew with what is new by then (a round). On a disk that is nearly full the collector is
 * not kept away, and only this second rule holds.
 *
 * A file that is being written has, in the backup, bytes of the time at which it was
 * copied; if it did not stay the same for the time of three copies, it is named.
 *
 * Into a directory, in this order:
 *
 *   DIR/weightfs.db, data/     the backup that is there; untouched until the last step
 *   DIR/data.next/xx/ID        what the new one needs and the old one has not. With
 *   DIR/weightfs.db.new        which describes all of it that is complete; ID.part is not
 *   DIR/weightfs.db.next       .new, renamed when everything is on the disk. From here on
 *                              the new backup counts: the old database goes, the files of
 *                              data.next move to data/, what is gone to data.old, and
 *   DIR/weightfs.db            at last the database
 *
 * Killed before the rename to .next, the old backup is whole, and the next run takes what
 * data.next has. Killed after it, the store has no weightfs.db for the time of some
 * renames, and the next run or wfs_backup_finish completes it.
 *
 * In a tar file data files come in any order, one that was read anew comes twice, and the
 * last is what counts, as tar(1) extracts them; weightfs.db is the last member.
 */
#ifndef WFS_BACKUP_H
#define WFS_BACKUP_H

#include "lib/base.h"
#include "lib/err.h"

struct wfs_backup_options {
	void (*progress)(void *ctx, uint64_t done, uint64_t total); /* bytes; or NULL */
	void (*unsteady)(void *ctx, const char *path); /* a file that was written all the time; or NULL */
	void *ctx;
};

struct wfs_backup_summary {
	uint64_t files_copied, bytes_copied; /* data files; bytes that were written, holes are not */
	uint64_t files_kept, bytes_kept;     /* that an earlier backup had; disk blocks */
	uint64_t files_removed;              /* that nothing needs any more */
	uint64_t database_bytes;
	uint64_t unsteady;
	uint64_t rounds;
};

/*
 * The store at `store` to the directory `dir`, which is made if it is missing. Durable when it
 * returns. Errors, the old backup whole in each case, with a reason in *err:
 *   -EEXIST  not-a-backup    there is something else in `dir`, or a store that was mounted to be written
 *   -EEXIST  other-store     there is a backup of another store
 *   -EBUSY   store-locked    it is mounted, or another backup is at it
 *   -EAGAIN  too-busy        the store changed all the time
 *   -ENOSPC  no-space        what was copied by this run is removed again
 *   and those of wfs_store_open; else io
 */
int wfs_backup_to_dir(const char *store, const char *dir, const struct wfs_backup_options *options,
	struct wfs_backup_summary *ret, struct wfs_err *err);

/* Complete a backup that was interrupted in its last step: needs nothing but `dir`. 1: done; 0: there was nothing. */
int wfs_backup_finish(const char *dir, struct wfs_err *err);

/* The same as one tar file, written to `fd`; databases that are being made lie in `work_dir`. */
int wfs_backup_to_tar(const char *store, int fd, const char *work_dir,
	const struct wfs_backup_options *options, struct wfs_backup_summary *ret, struct wfs_err *err);

#endif
