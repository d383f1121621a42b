#include "lib/backup.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/statvfs.h>

#include "lib/array.h"
#include "lib/backup_priv.h"
#include "lib/backup_target.h"
#include "lib/format.h"
#include "lib/hold.h"
#include "lib/reserve.h"

#define DATA_STATES "(0, 1)" /* staging and packs: what anything lives in */

/* ---- SQL ---- */

int wfs_backup_sql_error(struct wfs_backup *b, sqlite3 *handle, int code)
{
	int ret = wfs_backup_errno(code);

	return wfs_err_set(b->err, ret, ret == -ENOSPC ? "no-space" : "io", WFS_NO_OFFSET,
		"a database of the backup: %s", handle ? sqlite3_errmsg(handle) : sqlite3_errstr(code));
}

int wfs_backup_sql(struct wfs_backup *b, const char *sql)
{
	int code = sqlite3_exec(b->snap, sql, NULL, NULL, NULL);

	return code == SQLITE_OK ? 0 : wfs_backup_sql_error(b, b->snap, code);
}

int wfs_backup_ask(struct wfs_backup *b, sqlite3 *handle, const char *sql, uint64_t n, uint64_t *ret)
{
	sqlite3_stmt *stmt = NULL;
	int code = sqlite3_prepare_v2(handle, sql, -1, &stmt, NULL);

	if (code == SQLITE_OK)
		code = sqlite3_bind_int64(stmt, 1, (int64_t)n);
	if (code == SQLITE_OK || code == SQLITE_RANGE) /* it has no parameter */
		code = sqlite3_step(stmt);
	if (code == SQLITE_ROW && ret)
		*ret = (uint64_t)sqlite3_column_int64(stmt, 0);
	sqlite3_finalize(stmt);
	if (code == SQLITE_ROW || code == SQLITE_DONE)
		return code == SQLITE_ROW;
	return wfs_backup_sql_error(b, handle, code);
}

/* ---- the source ---- */

int wfs_backup_open(struct wfs_backup *b, const char *store)
{
	const struct wfs_store_options options = { .mode = WFS_STORE_READ };

	b->hold_fd = -1;
	*b->summary = (struct wfs_backup_summary){ 0 };
	return wfs_store_open(store, &options, &b->live, b->err);
}

void wfs_backup_close(struct wfs_backup *b)
{
	wfs_backup_close_snap(b);
	if (b->hold_fd >= 0)
		close(b->hold_fd);
	if (b->live)
		wfs_store_close(b->live);
	free(b->files);
}

/* What is removed while the collector is kept away takes room that its writers may need. */
static bool is_short_of_space(struct wfs_backup *b)
{
	struct statvfs st;
	uint64_t left;

	if (fstatvfs(b->live->dir_fd, &st) != 0)
		return true;
	left = (uint64_t)st.f_bavail * st.f_frsize;
	return left < 4 * WFS_RESERVE_BYTES || st.f_bavail < st.f_blocks / 32;
}

static void keep_collector_away(struct wfs_backup *b)
{
	if (b->hold_fd < 0 && !is_short_of_space(b))
		b->hold_fd = wfs_hold_take(b->live->dir_fd);
}

static void let_collector_work(struct wfs_backup *b)
{
	if (b->hold_fd >= 0)
		close(b->hold_fd);
	b->hold_fd = -1;
}

/* ---- the snapshot ---- */

void wfs_backup_close_snap(struct wfs_backup *b)
{
	sqlite3_close(b->snap);
	b->snap = NULL;
}

int wfs_backup_open_snap(struct wfs_backup *b, const char *path)
{
	int code = sqlite3_open_v2(path, &b->snap,
		SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_NOFOLLOW, NULL);

	return code == SQLITE_OK ? 0 : wfs_backup_sql_error(b, b->snap, code);
}

/* One state of the database, whoever writes meanwhile: all pages in one step. */
static int copy_database(struct wfs_backup *b)
{
	sqlite3_backup *copy = sqlite3_backup_init(b->snap, "main", b->live->db.handle, "main");
	int code;

	if (!copy)
		return wfs_backup_sql_error(b, b->snap, sqlite3_errcode(b->snap));
	sqlite3_backup_step(copy, -1);
	code = sqlite3_backup_finish(copy);
	return code == SQLITE_OK ? 0 : wfs_backup_sql_error(b, b->snap, code);
}

/* Rows of data files that were about to go go at once; and a backup is one file, without a log. */
static int prune(struct wfs_backup *b)
{
	WFS_AUTO_FREE char *sql = wfs_format("PRAGMA journal_mode = DELETE;"
		"BEGIN;"
		"DELETE FROM data_file WHERE state NOT IN " DATA_STATES ";"
		"INSERT OR REPLACE INTO meta (key, value) VALUES ('" WFS_NOTE_BACKUP "', '%lld');"
		"COMMIT", (long long)wfs_now_ns());

	if (!sql)
		return -ENOMEM;
	return wfs_backup_sql(b, sql);
}

static int add_file(struct wfs_backup *b, size_t *room, sqlite3_stmt *row)
{
	if (WFS_ARRAY_ROOM(b->files, b->n_files, *room))
		return -ENOMEM;
	b->files[b->n_files++] = (struct wfs_backup_file){
		.id = (uint64_t)sqlite3_column_int64(row, 0),
		.ino = (uint64_t)sqlite3_column_int64(row, 1),
	};
	return 0;
}

/* Staging files first: they change. */
static int list_files(struct wfs_backup *b)
{
	sqlite3_stmt *stmt = NULL;
	size_t room = 0;
	int ret = 0;
	int code = sqlite3_prepare_v2(b->snap,
		"SELECT d.id, i.ino FROM data_file d LEFT JOIN inode i ON i.data_file = d.id"
		" ORDER BY i.ino IS NULL, d.id", -1, &stmt, NULL);

	free(b->files);
	b->files = NULL;
	b->n_files = 0;
	while (code == SQLITE_OK && ret == 0 && (code = sqlite3_step(stmt)) == SQLITE_ROW) {
		ret = add_file(b, &room, stmt);
		code = SQLITE_OK;
	}
	sqlite3_finalize(stmt);
	if (ret == 0 && code != SQLITE_DONE)
		ret = wfs_backup_sql_error(b, b->snap, code);
	return ret;
}

/* A journal that a run left which was killed would be rolled back into the next database of that name. */
static int remove_old(struct wfs_backup *b, const char *path)
{
	WFS_AUTO_FREE char *journal = wfs_format("%s-journal", path);

	if (!journal)
		return -ENOMEM;
	if ((unlink(path) != 0 && errno != ENOENT) || (unlink(journal) != 0 && errno != ENOENT))
		return wfs_err_errno(b->err, -errno, "%s", path);
	return 0;
}

int wfs_backup_snapshot(struct wfs_backup *b, const char *path)
{
	int ret;

	wfs_backup_close_snap(b);
	b->changed = false;
	b->summary->rounds++;
	keep_collector_away(b);
	clock_gettime(CLOCK_REALTIME_COARSE, &b->since); /* the kernel's clock for ctime */
	ret = remove_old(b, path);
	if (ret == 0)
		ret = wfs_backup_open_snap(b, path);
	if (ret == 0)
		ret = copy_database(b);
	if (ret == 0)
		ret = prune(b);
	return ret ? ret : list_files(b);
}

int wfs_backup_is_in(struct wfs_backup *b, const char *schema, uint64_t id)
{
	char sql[600];
	int ret;

	/* Ids are never reused; digests tell the stores apart that went different ways. */
	snprintf(sql, sizeof(sql),
		"SELECT 1 FROM main.object n LEFT JOIN %s.object o ON o.id = n.id"
		" AND o.data_file = n.data_file AND o.offset = n.offset AND o.length = n.length"
		" AND o.digest = n.digest WHERE n.data_file = ?1 AND o.id IS NULL"
		" UNION ALL "
		"SELECT 1 FROM main.manifest n LEFT JOIN %s.manifest o ON o.id = n.id"
		" AND o.whole = n.whole AND o.digest IS n.digest AND o.size = n.size AND o.refs > 0"
		" WHERE n.whole = ?1 AND n.refs > 0 AND o.id IS NULL LIMIT 1", schema, schema);
	ret = wfs_backup_ask(b, b->snap, sql, id, NULL);
	if (ret)
		return WFS_MIN(ret, 0);
	snprintf(sql, sizeof(sql), "SELECT 1 FROM %s.data_file WHERE id = ?1 AND state = 1", schema);
	return wfs_backup_ask(b, b->snap, sql, id, NULL);
}

/* ---- one data file ---- */

int wfs_backup_open_file(struct wfs_backup *b, const struct wfs_backup_file *f, struct stat *ret_st)
{
	char path[WFS_DATAFILE_PATH_SIZE];
	int fd = wfs_datafile_open(&b->live->datafiles, f->id);

	if (fd == -ENOENT) {
		b->changed = true;
		return fd;
	}
	wfs_datafile_path(f->id, path);
	if (fd < 0)
		return wfs_err_errno(b->err, fd, "%s/%s", b->live->path, path);
	if (fstat(fd, ret_st) != 0) {
		int ret = wfs_err_errno(b->err, -errno, "%s/%s", b->live->path, path);

		close(fd);
		return ret;
	}
	return fd;
}

/* Does each row that `list` gives of the snapshot still give one in the live database, by `still`? */
static int all_still_there(struct wfs_backup *b, uint64_t id, const char *list, const char *still)
{
	sqlite3 *live = b->live->db.handle;
	sqlite3_stmt *rows = NULL, *look = NULL;
	int code = sqlite3_prepare_v2(b->snap, list, -1, &rows, NULL);
	int ret = 1;

	if (code == SQLITE_OK)
		code = sqlite3_prepare_v2(live, still, -1, &look, NULL);
	if (code == SQLITE_OK)
		code = sqlite3_bind_int64(rows, 1, (int64_t)id);
	while (code == SQLITE_OK && ret > 0 && (code = sqlite3_step(rows)) == SQLITE_ROW) {
		sqlite3_reset(look);
		sqlite3_bind_int64(look, 1, (int64_t)id);
		sqlite3_bind_int64(look, 2, sqlite3_column_int64(rows, 0));
		sqlite3_bind_int64(look, 3, sqlite3_column_int64(rows, 1));
		code = sqlite3_step(look);
		ret = code == SQLITE_ROW;
		if (code == SQLITE_ROW || code == SQLITE_DONE)
			code = SQLITE_OK;
	}
	if (code != SQLITE_OK && code != SQLITE_DONE)
		ret = wfs_backup_sql_error(b, live, code);
	sqlite3_finalize(rows);
	sqlite3_finalize(look);
	return ret;
}

static int is_pack_there(struct wfs_backup *b, uint64_t id)
{
	int ret = all_still_there(b, id, "SELECT id, offset FROM object WHERE data_file = ?1",
		"SELECT 1 FROM object WHERE data_file = ?1 AND id = ?2 AND offset = ?3");

	if (ret <= 0)
		return ret;
	return all_still_there(b, id, "SELECT id, 0 FROM manifest WHERE whole = ?1 AND refs > 0",
		"SELECT 1 FROM manifest WHERE whole = ?1 AND id = ?2 AND refs > 0 AND ?3 = 0");
}

/*
 * While the collector is kept away, what was removed or sealed meanwhile still has its bytes. Only what is
 * taken back as staging changes, and that sets its times first (lib/unseal.c).
 */
static bool is_untouched(struct wfs_backup *b, const struct wfs_backup_file *f, int fd)
{
	struct stat st;

	if (b->hold_fd < 0)
		return false;
	if (f->ino)
		return true; /* as it is written, so it is copied */
	return fstat(fd, &st) == 0 && (st.st_ctim.tv_sec < b->since.tv_sec ||
		(st.st_ctim.tv_sec == b->since.tv_sec && st.st_ctim.tv_nsec < b->since.tv_nsec));
}

int wfs_backup_check(struct wfs_backup *b, const struct wfs_backup_file *f, int fd)
{
	sqlite3 *live = b->live->db.handle;
	int code, ret = 1;

	if (b->hold_fd >= 0 && is_short_of_space(b))
		let_collector_work(b);
	if (is_untouched(b, f, fd))
		return 1;
	code = sqlite3_exec(live, "BEGIN", NULL, NULL, NULL);
	if (code != SQLITE_OK)
		return wfs_backup_sql_error(b, live, code);
	if (f->ino)
		ret = all_still_there(b, f->id, "SELECT ino, 0 FROM inode WHERE data_file = ?1",
			"SELECT 1 FROM inode WHERE data_file = ?1 AND ino = ?2 AND ?3 = 0");
	else
		ret = is_pack_there(b, f->id);
	sqlite3_exec(live, "COMMIT", NULL, NULL, NULL);
	if (ret == 0)
		b->changed = true;
	return ret;
}

static bool is_same_time(const struct timespec *a, const struct timespec *b)
{
	return a->tv_sec == b->tv_sec && a->tv_nsec == b->tv_nsec;
}

bool wfs_backup_is_steady(int fd, const struct stat *before)
{
	struct stat now;

	return fstat(fd, &now) == 0 && now.st_size == before->st_size &&
	       is_same_time(&now.st_mtim, &before->st_mtim);
}

int wfs_backup_say_unsteady(struct wfs_backup *b, uint64_t ino)
{
	WFS_AUTO_FREE char *path = NULL;
	int ret = wfs_name_path(b->live, ino, &path);

	b->summary->unsteady++;
	if (ret == 0 && b->options->unsteady)
		b->options->unsteady(b->options->ctx, path);
	return ret == -ENOENT ? 0 : ret; /* it has no name any more */
}

void wfs_backup_progress(struct wfs_backup *b, uint64_t bytes)
{
	b->done += bytes;
	if (b->options->progress)
		b->options->progress(b->options->ctx, b->done, WFS_MAX(b->total, b->done));
}

int wfs_backup_next_data(int fd, uint64_t size, uint64_t *at, uint64_t *end)
{
	off_t from, to;

	if (*at >= size)
		return 0;
	from = lseek(fd, (off_t)*at, SEEK_DATA);
	if (from < 0 && errno == ENXIO)
		return 0;
	if (from < 0 && errno == EINVAL) {
		*end = size;
		return 1;
	}
	to = from < 0 ? -1 : lseek(fd, from, SEEK_HOLE);
	if (to < 0)
		return -errno;
	if ((uint64_t)from >= size)
		return 0;
	*at = (uint64_t)from;
	*end = WFS_MIN((uint64_t)to, size);
	return 1;
}
