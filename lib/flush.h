/*
 * flush.h - the bytes of dirty files on the disk, and that they are.
 *
 * A transaction may reach the disk at any time (the kernel writes the database's log
 * back when it likes), so what a transaction relies on is there before it is committed: the bytes
 * of a file that is renamed over another (docs/decisions/0017). A dirty file that was
 * flushed has a note in its row: how long it was and when it was last changed.
 * After a power cut (lib/power.h) one that has none, or has changed since, may lack bytes.
 */
#ifndef WFS_FLUSH_H
#define WFS_FLUSH_H

#include "lib/base.h"
#include "lib/file.h"
#include "lib/store.h"

/*
 * Bytes that are in the file now are on the disk when this returns 0; the note is
 * committed, for whoever makes the database durable next. Nothing to do for a sealed
 * file. Blocks on the disk, holds no lock meanwhile. -EIO where the disk failed.
 * *ret_first: until now it had no note, so that after a power cut it would be reported
 * unless the new one is durable. With one that is old it would be, too, but a
 * program that makes its file durable again and again does not wait for each note.
 */
int wfs_flush_file(struct wfs_file *f, bool *ret_first);
int wfs_flush_inode(struct wfs_store *s, uint64_t ino); /* of any kind; one that is gone is flushed */
/* The same; one whose flush fails is reported by name (docs/decisions/0020), and what others wait for does not hang on it. */
int wfs_flush_or_report(struct wfs_store *s, uint64_t ino);

/*
 * Before a file that was flushed is cut, or opened to be written in place: its note goes, durably. Else the power
 * could go when some pages of the change are on the disk, and the new mtime is not. 0 or -errno.
 */
int wfs_flush_take_back(struct wfs_file *f);

/*
 * To be called before wfs_name_rename with the same arguments: where a file takes the place of
 * another, its bytes are on the disk first. A rename that will fail is left to fail. 0 or -errno.
 */
int wfs_flush_for_rename(struct wfs_store *s, uint64_t parent, const char *name,
	uint64_t new_parent, const char *new_name, unsigned flags);

/*
 * For many that come one after the other (tensors that are put): the next wfs_store_sync
 * flushes this inode. Until then its note is missing, and that tells after a power cut.
 */
int wfs_flush_later(struct wfs_store *s, uint64_t ino);
/* Flush what is on that list, for wfs_store_sync; what fails stays there. */
int wfs_flush_all(struct wfs_store *s);

/* What the note says: 1 with *ret_size and *ret_mtime_ns; 0: it was never flushed; -errno. */
int wfs_flush_note(struct wfs_store *s, uint64_t ino, uint64_t *ret_size, int64_t *ret_mtime_ns);

#endif
