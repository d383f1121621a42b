#include "lib/backup_target.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <sqlite3.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>

#include "lib/db_uri.h"
#include "lib/format.h"
#include "lib/listdir.h"

int wfs_backup_errno(int code)
{
	switch (code & 0xff) {
	case SQLITE_FULL:
		return -ENOSPC;
	case SQLITE_NOMEM:
		return -ENOMEM;
	case SQLITE_CORRUPT:
	case SQLITE_NOTADB:
		return -EUCLEAN;
	default:
		return -EIO;
	}
}

/* ---- the directory ---- */

static int lock_target(struct wfs_backup_target *t, struct wfs_err *err)
{
	char text[32];
	int len;

	t->lock_fd = openat(t->dir_fd, "lock", O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (t->lock_fd < 0)
		return wfs_err_errno(err, -errno, "%s/lock", t->path);
	if (flock(t->lock_fd, LOCK_EX | LOCK_NB) != 0)
		return errno != EWOULDBLOCK ? wfs_err_errno(err, -errno, "%s/lock", t->path)
			: wfs_err_set(err, -EBUSY, "store-locked", WFS_NO_OFFSET,
				"%s is mounted, or another backup is at it", t->path);
	len = snprintf(text, sizeof(text), "%d\n", (int)getpid());
	if (ftruncate(t->lock_fd, 0) != 0 || pwrite(t->lock_fd, text, (size_t)len, 0) != len)
		return wfs_err_errno(err, -errno, "%s/lock", t->path);
	return 0;
}

/* Names that a store, or an earlier run, has in its directory. */
static bool is_own_name(const char *name)
{
	static const char *const names[] = { "lock", "data", "reserve", "weightfs.log",
		"weightfs.log.1", "lost+found", WFS_BACKUP_INCOMING, WFS_BACKUP_OUTGOING };

	if (strncmp(name, WFS_BACKUP_DB, strlen(WFS_BACKUP_DB)) == 0)
		return true;
	for (size_t i = 0; i < WFS_ARRAY_SIZE(names); i++)
		if (strcmp(name, names[i]) == 0)
			return true;
	return false;
}

static int check_names(const struct wfs_backup_target *t, struct wfs_err *err)
{
	char name[NAME_MAX + 1];
	int found = wfs_listdir_other(t->dir_fd, is_own_name, name);

	if (found > 0)
		return wfs_err_set(err, -EEXIST, "not-a-backup", WFS_NO_OFFSET,
			"%s is not empty and no backup (it has '%s')", t->path, name);
	return found ? wfs_err_errno(err, found, "%s", t->path) : 0;
}

int wfs_backup_target_open(struct wfs_backup_target *t, const char *path, bool create,
	struct wfs_err *err)
{
	int ret;

	*t = (struct wfs_backup_target){ .dir_fd = -1, .lock_fd = -1 };
	if (create && mkdir(path, 0700) != 0 && errno != EEXIST)
		return wfs_err_errno(err, -errno, "%s", path);
	t->dir_fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (t->dir_fd < 0)
		return wfs_err_errno(err, -errno, "%s", path);
	t->path = realpath(path, NULL);
	if (!t->path)
		return wfs_err_errno(err, -errno, "%s", path);
	ret = check_names(t, err);
	return ret ? ret : lock_target(t, err);
}

void wfs_backup_target_close(struct wfs_backup_target *t)
{
	if (t->lock_fd >= 0)
		close(t->lock_fd);
	if (t->dir_fd >= 0)
		close(t->dir_fd);
	free(t->path);
}

char *wfs_backup_target_path(const struct wfs_backup_target *t, const char *name)
{
	return wfs_format("%s/%s", t->path, name);
}

int wfs_backup_target_find(const struct wfs_backup_target *t, const char *name)
{
	struct stat st;

	if (fstatat(t->dir_fd, name, &st, AT_SYMLINK_NOFOLLOW) == 0)
		return 1;
	return errno == ENOENT ? 0 : -errno;
}

int wfs_backup_target_sync(const struct wfs_backup_target *t, const char *name)
{
	WFS_AUTO_CLOSE int fd = openat(t->dir_fd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);

	return fd < 0 || fsync(fd) != 0 ? -errno : 0;
}

int wfs_backup_target_remove(const struct wfs_backup_target *t, const char *name, struct wfs_err *err)
{
	if (unlinkat(t->dir_fd, name, 0) == 0 || errno == ENOENT)
		return 0;
	return wfs_err_errno(err, -errno, "%s/%s", t->path, name);
}

/* ---- two levels of directories ---- */

typedef int (*file_fn)(void *ctx, int xx_fd, const char *xx, const char *name);

struct each {
	file_fn fn;
	void *ctx;
	const char *xx; /* the directory that it is in; NULL before the first */
};

static int each_file(void *ctx, int xx_fd, const char *name)
{
	const struct each *each = ctx;

	return each->fn(each->ctx, xx_fd, each->xx, name);
}

static int each_directory(void *ctx, int top_fd, const char *name)
{
	struct each *each = ctx;

	each->xx = name;
	return wfs_listdir(top_fd, name, each_file, each);
}

int wfs_backup_target_each(const struct wfs_backup_target *t, const char *top, file_fn fn, void *ctx,
	struct wfs_err *err)
{
	struct each each = { .fn = fn, .ctx = ctx };
	int ret = wfs_listdir(t->dir_fd, top, each_directory, &each);

	if (ret == -ENOENT && !each.xx)
		return 0;
	return ret ? wfs_err_errno(err, ret, "%s/%s", t->path, top) : 0;
}

static int remove_file(void *ctx, int xx_fd, const char *xx, const char *name)
{
	(void)ctx;
	(void)xx;
	return unlinkat(xx_fd, name, 0) != 0 && errno != ENOENT ? -errno : 0;
}

static int remove_directories(const struct wfs_backup_target *t, const char *top)
{
	char name[40];

	for (unsigned xx = 0; xx < 256; xx++) {
		int found;

		snprintf(name, sizeof(name), "%s/%02x", top, xx);
		found = wfs_backup_target_find(t, name);
		if (found < 0)
			return found;
		if (found > 0 && unlinkat(t->dir_fd, name, AT_REMOVEDIR) != 0)
			return -errno;
	}
	return unlinkat(t->dir_fd, top, AT_REMOVEDIR) != 0 && errno != ENOENT ? -errno : 0;
}

int wfs_backup_target_clear(const struct wfs_backup_target *t, const char *top, struct wfs_err *err)
{
	int ret = wfs_backup_target_each(t, top, remove_file, NULL, err);

	if (ret == 0 && (ret = remove_directories(t, top)) != 0)
		wfs_err_errno(err, ret, "%s/%s", t->path, top);
	return ret;
}

/* ---- the last step ---- */

struct move {
	const struct wfs_backup_target *t;
	const char *to;        /* directory beside `data` */
	sqlite3_stmt *has_row; /* files that have one stay; NULL: all go */
	uint64_t moved;
	bool touched[256];     /* directories that got files */
};

/* 1, 0 or -errno. */
static int has_row(struct move *m, const char *name)
{
	int code;

	if (!m->has_row)
		return 0;
	sqlite3_reset(m->has_row);
	sqlite3_bind_int64(m->has_row, 1, (int64_t)strtoull(name, NULL, 16));
	code = sqlite3_step(m->has_row);
	if (code != SQLITE_ROW && code != SQLITE_DONE)
		return wfs_backup_errno(code);
	return code == SQLITE_ROW;
}

static int move_file(void *ctx, int xx_fd, const char *xx, const char *name)
{
	struct move *m = ctx;
	char path[80], dir[40];
	int stays = has_row(m, name);

	if (stays)
		return WFS_MIN(stays, 0);
	if (strlen(name) != 16 || strlen(xx) != 2)
		return unlinkat(xx_fd, name, 0) != 0 ? -errno : 0; /* half copied by a run that was killed */
	snprintf(dir, sizeof(dir), "%s/%s", m->to, xx);
	snprintf(path, sizeof(path), "%s/%s", dir, name);
	if ((mkdirat(m->t->dir_fd, m->to, 0700) != 0 && errno != EEXIST) ||
		(mkdirat(m->t->dir_fd, dir, 0700) != 0 && errno != EEXIST) ||
		renameat(xx_fd, name, m->t->dir_fd, path) != 0)
		return -errno;
	m->touched[strtoul(xx, NULL, 16) & 0xff] = true;
	m->moved++;
	return 0;
}

static int sync_touched(const struct move *m)
{
	char name[40];
	int ret = 0;

	for (unsigned xx = 0; xx < 256 && ret == 0; xx++) {
		snprintf(name, sizeof(name), "%s/%02x", m->to, xx);
		if (m->touched[xx])
			ret = wfs_backup_target_sync(m->t, name);
	}
	return ret ? ret : wfs_backup_target_sync(m->t, m->to);
}

static int open_next(const struct wfs_backup_target *t, sqlite3 **ret, sqlite3_stmt **ret_has_row)
{
	WFS_AUTO_FREE char *path = wfs_backup_target_path(t, WFS_BACKUP_NEXT);
	WFS_AUTO_FREE char *uri = path ? wfs_db_immutable_uri(path) : NULL;
	int code;

	if (!uri)
		return -ENOMEM;
	code = sqlite3_open_v2(uri, ret, SQLITE_OPEN_READONLY | SQLITE_OPEN_URI, NULL);
	if (code == SQLITE_OK)
		code = sqlite3_prepare_v2(*ret, "SELECT 1 FROM data_file WHERE id = ?1", -1, ret_has_row,
			NULL);
	return code == SQLITE_OK ? 0 : wfs_backup_errno(code);
}

static int move_files(const struct wfs_backup_target *t, uint64_t *ret_removed, struct wfs_err *err)
{
	struct move out = { .t = t, .to = WFS_BACKUP_OUTGOING };
	struct move in = { .t = t, .to = "data" };
	sqlite3 *next = NULL;
	int ret = open_next(t, &next, &out.has_row);

	if (ret)
		wfs_err_errno(err, ret, "%s/" WFS_BACKUP_NEXT, t->path);
	if (ret == 0 && mkdirat(t->dir_fd, "data", 0700) != 0 && errno != EEXIST)
		ret = wfs_err_errno(err, -errno, "%s/data", t->path);
	if (ret == 0)
		ret = wfs_backup_target_each(t, "data", move_file, &out, err);
	if (ret == 0)
		ret = wfs_backup_target_each(t, WFS_BACKUP_INCOMING, move_file, &in, err);
	if (ret == 0 && (ret = sync_touched(&in)) != 0)
		wfs_err_errno(err, ret, "%s/data", t->path);
	*ret_removed = out.moved;
	sqlite3_finalize(out.has_row);
	sqlite3_close(next);
	return ret;
}

static int sync_self(const struct wfs_backup_target *t, struct wfs_err *err)
{
	int ret = wfs_backup_target_sync(t, ".");

	return ret ? wfs_err_errno(err, ret, "%s", t->path) : 0;
}

int wfs_backup_target_complete(const struct wfs_backup_target *t, uint64_t *ret_removed, struct wfs_err *err)
{
	/* A log of the old database would be taken for one of the new. */
	static const char *const old[] = { WFS_BACKUP_DB, WFS_BACKUP_DB "-wal", WFS_BACKUP_DB "-shm",
		WFS_BACKUP_DB "-journal" };
	int ret = 0;

	for (size_t i = 0; i < WFS_ARRAY_SIZE(old) && ret == 0; i++)
		ret = wfs_backup_target_remove(t, old[i], err);
	if (ret == 0)
		ret = sync_self(t, err);
	if (ret == 0)
		ret = move_files(t, ret_removed, err);
	if (ret == 0 && renameat(t->dir_fd, WFS_BACKUP_NEXT, t->dir_fd, WFS_BACKUP_DB) != 0)
		ret = wfs_err_errno(err, -errno, "%s/" WFS_BACKUP_NEXT, t->path);
	if (ret == 0)
		ret = sync_self(t, err);
	if (ret == 0)
		ret = wfs_backup_target_clear(t, WFS_BACKUP_OUTGOING, err);
	return ret ? ret : wfs_backup_target_clear(t, WFS_BACKUP_INCOMING, err);
}
