#include "lib/quota.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>

#include "lib/listdir.h"
#include "lib/store_priv.h"

static uint64_t blocks_at(int dir_fd, const char *name)
{
	struct stat st;

	return fstatat(dir_fd, name, &st, AT_SYMLINK_NOFOLLOW) == 0 && S_ISREG(st.st_mode)
		       ? (uint64_t)st.st_blocks * 512
		       : 0;
}

static int add_blocks(void *ctx, int dir_fd, const char *name)
{
	uint64_t *sum = ctx;

	*sum += blocks_at(dir_fd, name);
	return 0;
}

/* Blocks that two data files have: the disk holds them once. */
static uint64_t count_shared(struct wfs_store *s)
{
	uint64_t shared = 0;
	int found = wfs_db_begin_read(&s->db);

	if (found == 0)
		found = wfs_db_end(&s->db, wfs_db_number(&s->db, WFS_Q_WHOLE_SHARED_SUM, &shared, ""));
	return found > 0 ? shared : 0;
}

static uint64_t count_blocks(struct wfs_store *s)
{
	uint64_t shared = count_shared(s);
	uint64_t sum = blocks_at(s->dir_fd, "weightfs.db") + blocks_at(s->dir_fd, "weightfs.db-wal");
	char name[WFS_DATAFILE_PATH_SIZE];

	for (unsigned i = 0; i < 256; i++) {
		snprintf(name, sizeof(name), "%02x", i);
		/* What is not there, or cannot be read, has none. */
		wfs_listdir(s->datafiles.data_fd, name, add_blocks, &sum);
	}
	return sum - WFS_MIN(sum, shared);
}

void wfs_quota_count(struct wfs_store *s)
{
	if (s->options.max_size) {
		pthread_mutex_lock(&s->quota_lock);
		atomic_store(&s->quota_used, count_blocks(s));
		pthread_mutex_unlock(&s->quota_lock);
	}
}

/* Count, and then take; the writers that are at the limit wait for each other. */
static int take_exactly(struct wfs_store *s, uint64_t bytes)
{
	uint64_t used;
	int ret = 0;

	pthread_mutex_lock(&s->quota_lock);
	used = count_blocks(s);
	if (used >= s->options.max_size || bytes > s->options.max_size - used)
		ret = -ENOSPC;
	atomic_store(&s->quota_used, ret ? used : used + bytes);
	pthread_mutex_unlock(&s->quota_lock);
	return ret;
}

static void say_once(struct wfs_store *s)
{
	if (!atomic_exchange(&s->quota_said, true))
		wfs_store_log(s, "%s: the limit of -o max_size is reached: writers get ENOSPC until "
			"something is removed", s->path);
}

int wfs_quota_take(struct wfs_store *s, uint64_t bytes)
{
	uint64_t max = s->options.max_size, used;
	int ret;

	if (!max)
		return 0;
	used = atomic_load(&s->quota_used);
	if (used < max && bytes <= max - used) {
		atomic_fetch_add(&s->quota_used, bytes);
		return 0;
	}
	ret = take_exactly(s, bytes);
	if (ret)
		say_once(s);
	else
		atomic_store(&s->quota_said, false);
	return ret;
}

int wfs_quota_begin_write(struct wfs_store *s, int fd, uint64_t offset, uint64_t length,
	struct wfs_quota_write *ret)
{
	uint64_t size, end = offset + length;
	struct stat st;

	*ret = (struct wfs_quota_write){ 0, 0 };
	if (!s->options.max_size || length == 0)
		return 0;
	if (fstat(fd, &st) != 0)
		return -errno;
	size = (uint64_t)st.st_size;
	ret->blocks = (uint64_t)st.st_blocks;
	if (ret->blocks * 512 < size)
		ret->taken = length; /* it may fall into a hole */
	else if (end > size)
		ret->taken = end - WFS_MAX(size, offset);
	return ret->taken ? wfs_quota_take(s, ret->taken) : 0;
}

void wfs_quota_end_write(struct wfs_store *s, int fd, const struct wfs_quota_write *w)
{
	struct stat st;

	if (s->options.max_size && fstat(fd, &st) == 0)
		atomic_fetch_add(&s->quota_used,
			((uint64_t)st.st_blocks - w->blocks) * 512 - w->taken);
}

int wfs_quota_statvfs(struct wfs_store *s, struct statvfs *ret)
{
	uint64_t max = s->options.max_size, used = atomic_load(&s->quota_used);
	uint64_t left;

	if (fstatvfs(s->dir_fd, ret) != 0)
		return -errno;
	if (!max || ret->f_frsize == 0)
		return 0;
	left = (used < max ? max - used : 0) / ret->f_frsize;
	ret->f_blocks = WFS_MIN(ret->f_blocks, max / ret->f_frsize);
	ret->f_bfree = WFS_MIN(ret->f_bfree, left);
	ret->f_bavail = WFS_MIN(ret->f_bavail, left);
	return 0;
}
