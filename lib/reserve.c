#include "lib/reserve.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>

#include "lib/owner.h"
#include "lib/store_priv.h"

#define NAME "reserve"
#define MAX_TRIES 4 /* the log, the reserve, and what others take meanwhile */

/* Bytes that may still be written; 0 if that is not known. */
static uint64_t free_bytes(struct wfs_store *s)
{
	struct statvfs st;

	return fstatvfs(s->dir_fd, &st) == 0 ? (uint64_t)st.f_bavail * st.f_frsize : 0;
}

static bool is_taken(struct wfs_store *s)
{
	struct stat st;

	return fstatat(s->dir_fd, NAME, &st, AT_SYMLINK_NOFOLLOW) == 0;
}

bool wfs_reserve_is_safe(struct wfs_store *s)
{
	return free_bytes(s) >= 2 * WFS_RESERVE_BYTES || is_taken(s);
}

static int take(struct wfs_store *s)
{
	WFS_AUTO_CLOSE int fd = openat(s->dir_fd, NAME,
		O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	int ret;

	if (fd < 0)
		return -errno;
	wfs_owner_inherit(s->dir_fd, NAME);
	ret = fallocate(fd, 0, 0, (off_t)WFS_RESERVE_BYTES) != 0 ? -errno : 0;
	/* A disk that cannot reserve blocks has no reserve; its file would hold nothing. */
	if (ret)
		unlinkat(s->dir_fd, NAME, 0);
	return ret == -EOPNOTSUPP || ret == -ENOSPC ? 0 : ret;
}

int wfs_reserve_keep(struct wfs_store *s)
{
	uint64_t left = free_bytes(s);
	bool taken = is_taken(s);

	if (!taken && left < WFS_RESERVE_BELOW && left >= 4 * WFS_RESERVE_BYTES)
		return take(s);
	if (taken && left >= 2 * WFS_RESERVE_BELOW && unlinkat(s->dir_fd, NAME, 0) != 0)
		return -errno;
	return 0;
}

/* True if the log's space can be used from its beginning again. */
static bool move_log(struct wfs_store *s)
{
	return wfs_store_log_pages(s) > 0 && wfs_store_checkpoint(s, 1) == 0 &&
	       wfs_store_log_pages(s) == 0;
}

bool wfs_reserve_make_room(struct wfs_store *s, int *tries)
{
	if ((*tries)++ >= MAX_TRIES)
		return false;
	if (move_log(s))
		return true;
	/* Without a reserve: another thread may have moved the log since the caller failed. */
	if (unlinkat(s->dir_fd, NAME, 0) != 0)
		return *tries == 1;
	wfs_store_log(s, "%s: the disk is full: the reserve was given up so that files can be "
		"removed", s->path);
	/*
	 * At once, while there is room for the database to grow by what is in the
	 * log. From here on removals only use pages and log space that are there.
	 */
	move_log(s);
	return true;
}
