/*
 * quota.h - the limit on a store's disk blocks: mount -o max_size=SIZE.
 *
 * Counted are the blocks of its data files and of the database, as du(1) does: what
 * is shared counts once, what waits to be sealed or given back counts as it lies
 * there. Between two counts the blocks that each write added are summed up; a write
 * that would pass the limit by that sum has all counted anew first.
 * Sealing, removing and truncating are never refused.
 */
#ifndef WFS_QUOTA_H
#define WFS_QUOTA_H

#include <sys/statvfs.h>

#include "lib/base.h"
#include "lib/store.h"

/* 0 if `bytes` more may be written now (0: if anything may); -ENOSPC at the limit. Cheap below it. */
int wfs_quota_take(struct wfs_store *s, uint64_t bytes);

/* A write that is under way. */
struct wfs_quota_write {
	uint64_t taken;  /* bytes */
	uint64_t blocks; /* of the file before it, of 512 bytes */
};

/*
 * Around a write of up to `length` bytes at `offset` to the data file `fd`: take what
 * it may need (0 or -ENOSPC), and return what it did not.
 */
int wfs_quota_begin_write(struct wfs_store *s, int fd, uint64_t offset, uint64_t length,
	struct wfs_quota_write *ret);
void wfs_quota_end_write(struct wfs_store *s, int fd, const struct wfs_quota_write *w);

/*
 * statvfs(3) of the store: the disk's, or where there is a limit and the disk has
 * more, the limit's. 0 or -errno.
 */
int wfs_quota_statvfs(struct wfs_store *s, struct statvfs *ret);

/* Count anew. Cost is linear in the number of data files; nothing where there is no limit. */
void wfs_quota_count(struct wfs_store *s);

#endif
