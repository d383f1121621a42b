/*
 * repack.h - a composed file made whole again: its content is copied to a data file
 * of its own, which becomes the whole copy of its manifest (lib/whole.h).
 *
 *     wfs_repack_begin → wfs_repack_step until it returns 0 → wfs_repack_end
 *
 * A step copies a bounded number of bytes, so that no thread is busy with it for long;
 * between two steps anything may happen to the file. Nothing of the copy is to be seen
 * before the last step, and nothing of it stays if there is none: the file is as it
 * was. Who reads the file meanwhile goes on with the extents that it has.
 *
 * One thread at a time for each struct wfs_repack; the file must outlive it. No lock
 * is held across I/O.
 */
#ifndef WFS_REPACK_H
#define WFS_REPACK_H

#include "lib/base.h"
#include "lib/file.h"

struct wfs_repack;

struct wfs_repack_progress {
	uint64_t done, total; /* bytes of the file */
	uint64_t copied;      /* of those done: written anew; for the rest the disk shares blocks */
};

/*
 * 1: *ret is to be stepped and ended. 0: there is nothing to be made whole: see
 * wfs_file_layout. -EAGAIN: the file is dirty and will be sealed; -ETXTBSY: somebody
 * may write it; -EROFS; -ENOSPC: by the limit of the store, or its disk is full.
 */
int wfs_repack_begin(struct wfs_file *f, struct wfs_repack **ret);

/*
 * 1: there is more; 0: the file is whole, and that is on the disk. -ENOSPC: may be
 * tried again. -ETXTBSY: the file was written meanwhile. -EIO: bytes of it cannot be
 * read or written.
 */
int wfs_repack_step(struct wfs_repack *r);

void wfs_repack_get_progress(const struct wfs_repack *r, struct wfs_repack_progress *ret);

/* Before the last step: nothing of it stays. NULL is allowed. */
void wfs_repack_end(struct wfs_repack *r);

#endif
