/* fsck_repair.c - one repair: the lock, the copies, the rounds, the exchange of the database. */
#include "lib/fsck_fix.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>

#include "lib/digest.h"
#include "lib/format.h"
#include "lib/fsck.h"
#include "lib/owner.h"
#include "lib/store_time.h"

#define DB "weightfs.db"
#define WORK "weightfs.db.repaired" /* the copy that is worked on */
#define MAX_ROUNDS 6
#define COPY_SIZE (1 << 20)

struct repair {
	const char *path;
	const struct wfs_fsck_options *options;
	const struct wfs_fsck_repair *how;
	struct wfs_fsck_repaired *ret;
	struct wfs_err *err;
	int store_fd, lock_fd, kept_fd;
	bool needs_salvage; /* pages or the schema are damaged */
	bool was_settled;
};

/* ---- the store for ourselves ---- */

static int take_lock(struct repair *r)
{
	r->store_fd = open(r->path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (r->store_fd < 0 && errno == ENOENT)
		return wfs_err_set(r->err, -ENOENT, "store-missing", WFS_NO_OFFSET, "%s: no such store",
			r->path);
	if (r->store_fd < 0)
		return wfs_err_errno(r->err, -errno, "%s", r->path);
	if (faccessat(r->store_fd, DB, F_OK, 0) != 0)
		return wfs_err_set(r->err, -ENOTEMPTY, "not-a-store", WFS_NO_OFFSET,
			"%s is not a store: it has no file " DB, r->path);
	r->lock_fd = openat(r->store_fd, "lock", O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (r->lock_fd < 0)
		return wfs_err_errno(r->err, -errno, "%s/lock", r->path);
	wfs_owner_inherit(r->store_fd, "lock");
	if (flock(r->lock_fd, LOCK_EX | LOCK_NB) != 0)
		return errno != EWOULDBLOCK
			? wfs_err_errno(r->err, -errno, "%s/lock", r->path)
			: wfs_err_set(r->err, -EBUSY, "store-locked", WFS_NO_OFFSET,
				"%s is in use: unmount it first; only a store that nobody uses can be "
				"repaired", r->path);
	return 0;
}

/* ---- looking ---- */

static void note_finding(void *ctx, const struct wfs_fsck_finding *f)
{
	struct repair *r = ctx;

	if (strcmp(f->kind, "database") == 0 || strcmp(f->kind, "schema") == 0)
		r->needs_salvage = true;
	if (r->how->found)
		r->how->found(r->how->ctx, f);
}

/* Not even its first bytes are those of a database: 1, 0 or -errno. */
static int has_no_header(struct repair *r)
{
	WFS_AUTO_CLOSE int fd = openat(r->store_fd, DB, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
	char head[16] = "";

	if (fd < 0 || read(fd, head, sizeof(head)) < 0)
		return -errno;
	return memcmp(head, "SQLite format 3", sizeof(head)) != 0;
}

/* A database that cannot be opened is a finding, too. */
static int look(struct repair *r)
{
	struct wfs_fsck_run run = {
		.path = r->path, .db_name = DB, .store_fd = -1, .data_fd = -1, .holds_lock = true,
		.options = r->options, .fn = note_finding, .ctx = r, .err = r->err,
	};
	int ret = wfs_fsck_check_all(&run);
	int has_none = ret == -EINVAL ? has_no_header(r) : 0;

	if (has_none < 0)
		ret = has_none;
	if (ret == -EUCLEAN || has_none > 0) {
		r->needs_salvage = true;
		char text[sizeof(r->err->text)] = "the database is too damaged to be checked";

		if (r->err) {
			memcpy(text, r->err->text, sizeof(text));
			wfs_err_clear(r->err);
		}
		wfs_fsck_report_at(&run, "database", DB, text);
		ret = 0;
	}
	r->was_settled = run.clean;
	r->ret->before = run.summary;
	if (ret == 0 && run.data_fd < 0)
		ret = wfs_err_set(r->err, -ENOTDIR, "no-data", WFS_NO_OFFSET,
			"%s/data is no directory: put it back (is its disk mounted?); to go on without the "
			"bytes of large files, mkdir it", r->path);
	wfs_fsck_close(&run);
	return ret;
}

/* ---- what is kept ---- */

static int copy_file(int from_dir, int to_dir, const char *name)
{
	WFS_AUTO_CLOSE int in = openat(from_dir, name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
	WFS_AUTO_CLOSE int out = -1;
	WFS_AUTO_FREE char *buf = malloc(COPY_SIZE);
	ssize_t n;

	if (in < 0)
		/* cppcheck-suppress memleak; WFS_AUTO_FREE */
		return errno == ENOENT ? 0 : -errno;
	if (!buf)
		return -ENOMEM;
	out = openat(to_dir, name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (out < 0)
		/* cppcheck-suppress memleak; WFS_AUTO_FREE */
		return -errno;
	wfs_owner_inherit(to_dir, name);
	while ((n = read(in, buf, COPY_SIZE)) > 0)
		if (write(out, buf, (size_t)n) != n)
			return errno ? -errno : -ENOSPC;
	return n < 0 || fsync(out) != 0 ? -errno : 0;
}

/* The database as it was, and its log, in a directory of their own. */
static int keep_database(struct repair *r)
{
	time_t now = time(NULL);
	char *name = r->ret->kept;
	struct tm tm;
	int ret, tries = 0;

	gmtime_r(&now, &tm);
	strftime(name, sizeof(r->ret->kept), "before-repair-%Y%m%dT%H%M%SZ", &tm);
	while (mkdirat(r->store_fd, name, 0700) != 0) {
		size_t len = strcspn(name, ".");

		if (errno != EEXIST || ++tries > 99)
			return wfs_err_errno(r->err, -errno, "%s/%s", r->path, name);
		snprintf(name + len, sizeof(r->ret->kept) - len, ".%d", tries);
	}
	r->kept_fd = openat(r->store_fd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	if (r->kept_fd < 0)
		return wfs_err_errno(r->err, -errno, "%s/%s", r->path, name);
	wfs_owner_inherit(r->store_fd, name);
	ret = copy_file(r->store_fd, r->kept_fd, DB);
	if (ret == 0)
		ret = copy_file(r->store_fd, r->kept_fd, DB "-wal");
	if (ret == 0 && (fsync(r->kept_fd) != 0 || fsync(r->store_fd) != 0))
		ret = -errno;
	return ret ? wfs_err_errno(r->err, ret, "a copy of %s/" DB, r->path) : 0;
}

/* ---- the copy that is worked on ---- */

static void sql_digest(sqlite3_context *context, int n, sqlite3_value **v)
{
	struct wfs_digest digest;

	(void)n;
	if (sqlite3_value_type(v[0]) == SQLITE_NULL)
		return;
	digest = wfs_digest_of(sqlite3_value_blob(v[0]), (size_t)sqlite3_value_bytes(v[0]), 128);
	sqlite3_result_blob(context, digest.bytes, sizeof(digest.bytes), SQLITE_TRANSIENT);
}

static void sql_digest_at(sqlite3_context *context, int n, sqlite3_value **v)
{
	struct wfs_fix *fix = sqlite3_user_data(context);
	struct wfs_digest digest;

	for (int i = 0; i < n; i++)
		if (sqlite3_value_type(v[i]) != SQLITE_INTEGER)
			return;
	if (wfs_fix_hash(fix, sqlite3_value_int64(v[0]), sqlite3_value_int64(v[1]),
		    sqlite3_value_int64(v[2]), &digest) > 0)
		sqlite3_result_blob(context, digest.bytes, sizeof(digest.bytes), SQLITE_TRANSIENT);
}

static void sql_file_size(sqlite3_context *context, int n, sqlite3_value **v)
{
	struct wfs_fix *fix = sqlite3_user_data(context);

	(void)n;
	sqlite3_result_int64(context, wfs_fix_file_size(fix, sqlite3_value_int64(v[0])));
}

static char *path_in(const char *store, const char *name)
{
	return wfs_format("%s/%s", store, name);
}

static int db_failed(struct repair *r, sqlite3 *db, int code, const char *what)
{
	int ret = wfs_fsck_errno(code);

	return wfs_err_set(r->err, ret ? ret : -EUCLEAN, ret ? "io" : "repair-failed", WFS_NO_OFFSET,
		"%s: %s: %s", r->path, what, db ? sqlite3_errmsg(db) : sqlite3_errstr(code));
}

/* Page by page, the log included. */
static int copy_database(struct repair *r, const char *from, const char *to)
{
	sqlite3 *src = NULL, *dst = NULL;
	sqlite3_backup *backup = NULL;
	int code = sqlite3_open_v2(from, &src, SQLITE_OPEN_READWRITE | SQLITE_OPEN_NOMUTEX, NULL);

	if (code == SQLITE_OK)
		code = sqlite3_open_v2(to, &dst, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE |
			SQLITE_OPEN_NOMUTEX, NULL);
	if (code == SQLITE_OK)
		backup = sqlite3_backup_init(dst, "main", src, "main");
	if (code == SQLITE_OK)
		code = backup ? sqlite3_backup_step(backup, -1) : sqlite3_errcode(dst);
	sqlite3_backup_finish(backup);
	code = code == SQLITE_DONE ? SQLITE_OK : code;
	if (code != SQLITE_OK)
		code = db_failed(r, dst, code, "a copy of the database");
	sqlite3_close(dst);
	sqlite3_close(src);
	return code;
}

static int open_work(struct repair *r, struct wfs_fix *fix, const char *path)
{
	sqlite3 *db = NULL;
	int code = sqlite3_open_v2(path, &db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_NOMUTEX |
		SQLITE_OPEN_EXRESCODE, NULL);

	fix->run->db = db;
	if (code == SQLITE_OK)
		code = sqlite3_exec(db, "PRAGMA journal_mode = MEMORY; PRAGMA synchronous = OFF;"
			"PRAGMA foreign_keys = OFF; PRAGMA ignore_check_constraints = ON;"
			"PRAGMA trusted_schema = ON; PRAGMA cell_size_check = ON;"
			"PRAGMA temp_store = FILE; PRAGMA cache_size = -65536", NULL, NULL, NULL);
	if (code == SQLITE_OK)
		code = sqlite3_create_function_v2(db, "wfs_digest", 1, SQLITE_UTF8, NULL, sql_digest,
			NULL, NULL, NULL);
	if (code == SQLITE_OK)
		code = sqlite3_create_function_v2(db, "wfs_digest_at", 3, SQLITE_UTF8, fix,
			sql_digest_at, NULL, NULL, NULL);
	if (code == SQLITE_OK)
		code = sqlite3_create_function_v2(db, "wfs_file_size", 1, SQLITE_UTF8, fix,
			sql_file_size, NULL, NULL, NULL);
	return code == SQLITE_OK ? 0 : db_failed(r, db, code, WORK);
}

/* ---- rounds ---- */

static int run_parts(struct wfs_fix *fix)
{
	int (*const parts[])(struct wfs_fix *) = {
		wfs_fix_types, wfs_fix_modes, wfs_fix_objects, wfs_fix_manifests, wfs_fix_inodes,
		wfs_fix_strays, wfs_fix_unnamed, wfs_fix_bytes, wfs_fix_names, wfs_fix_counts,
	};
	int ret = 0;

	/* What could not be asked of the disk is not taken for lost: nothing is changed then. */
	for (size_t i = 0; i < WFS_ARRAY_SIZE(parts) && ret == 0; i++) {
		ret = parts[i](fix);
		ret = ret ? ret : fix->run->failed;
	}
	return ret;
}

/* Until a round finds nothing to do. What one did can be what the next one needs. */
static int run_rounds(struct wfs_fix *fix)
{
	uint64_t before;
	int ret = 0, round = 0;

	do {
		before = fix->actions;
		ret = wfs_fix_exec(fix, "BEGIN", "");
		if (ret == 0)
			ret = run_parts(fix);
		if (ret == 0)
			ret = wfs_fix_exec(fix, "COMMIT", "");
	} while (ret == 0 && fix->actions > before && ++round < MAX_ROUNDS && !fix->dry_run);
	if (ret == 0 && !fix->dry_run)
		ret = wfs_fix_exec(fix, "BEGIN", "");
	if (ret == 0 && !fix->dry_run)
		ret = wfs_lost_write_notes(fix);
	if (ret == 0 && !fix->dry_run)
		ret = wfs_fix_counts(fix);
	return ret == 0 && !fix->dry_run ? wfs_fix_exec(fix, "COMMIT", "") : ret;
}

/* An empty file, which SQLite takes for a new database; by itself it would make one that others can read. */
static int make_work(struct repair *r)
{
	WFS_AUTO_CLOSE int fd = openat(r->store_fd, WORK, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);

	if (fd < 0)
		return wfs_err_errno(r->err, -errno, "%s/" WORK, r->path);
	wfs_owner_inherit(r->store_fd, WORK);
	return 0;
}

static int build_work(struct repair *r, struct wfs_fix *fix)
{
	WFS_AUTO_FREE char *from = path_in(r->path, DB), *to = path_in(r->path, WORK);
	int ret;

	if (!from || !to)
		return -ENOMEM;
	/* What a repair that was stopped left behind. */
	unlinkat(r->store_fd, WORK, 0);
	unlinkat(r->store_fd, WORK "-wal", 0);
	unlinkat(r->store_fd, WORK "-shm", 0);
	ret = make_work(r);
	if (ret == 0)
		ret = r->needs_salvage ? wfs_fsck_salvage(fix, from, to) : copy_database(r, from, to);
	return ret ? ret : open_work(r, fix, to);
}

/* ---- the exchange ---- */

static void note_left(void *ctx, const struct wfs_fsck_finding *f)
{
	struct repair *r = ctx;

	if (r->how->left)
		r->how->left(r->how->ctx, f);
}

static int look_again(struct repair *r)
{
	struct wfs_fsck_run run = {
		.path = r->path, .db_name = WORK, .store_fd = -1, .data_fd = -1, .holds_lock = true,
		.options = r->options, .fn = note_left, .ctx = r, .err = r->err,
	};
	int ret = wfs_fsck_check_all(&run);

	r->ret->left = run.summary.findings;
	wfs_fsck_close(&run);
	return ret;
}

/* As a store has it between mounts: in WAL mode, without a log. */
static int finish_work(struct repair *r)
{
	WFS_AUTO_FREE char *path = path_in(r->path, WORK);
	WFS_AUTO_CLOSE int fd = -1;
	sqlite3 *db = NULL;
	int code = path ? sqlite3_open_v2(path, &db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_NOMUTEX, NULL)
			: SQLITE_NOMEM;

	if (code == SQLITE_OK)
		code = sqlite3_exec(db, "PRAGMA journal_mode = WAL", NULL, NULL, NULL);
	if (code != SQLITE_OK)
		code = db_failed(r, db, code, WORK);
	sqlite3_close(db);
	if (code)
		return code;
	fd = openat(r->store_fd, WORK, O_RDONLY | O_CLOEXEC);
	return fd < 0 || fsync(fd) != 0 ? wfs_err_errno(r->err, -errno, "%s/" WORK, r->path) : 0;
}

/*
 * The old log would be taken for one of the new database. It is moved into the old
 * database; only where that fails it goes away before the exchange (a copy is kept).
 */
static int drop_old_log(struct repair *r)
{
	WFS_AUTO_FREE char *path = path_in(r->path, DB);
	sqlite3 *db = NULL;
	struct stat st;

	if (!path)
		return -ENOMEM;
	if (sqlite3_open_v2(path, &db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_NOMUTEX, NULL) == SQLITE_OK)
		sqlite3_exec(db, "PRAGMA wal_checkpoint(TRUNCATE)", NULL, NULL, NULL);
	sqlite3_close(db);
	if (fstatat(r->store_fd, DB "-wal", &st, AT_SYMLINK_NOFOLLOW) == 0 &&
		unlinkat(r->store_fd, DB "-wal", 0) != 0)
		return wfs_err_errno(r->err, -errno, "%s/" DB "-wal", r->path);
	unlinkat(r->store_fd, DB "-shm", 0);
	return 0;
}

static int exchange(struct repair *r)
{
	int ret = finish_work(r);

	if (ret == 0)
		ret = drop_old_log(r);
	if (ret == 0 && renameat(r->store_fd, WORK, r->store_fd, DB) != 0)
		ret = wfs_err_errno(r->err, -errno, "%s/" DB, r->path);
	if (ret == 0 && fsync(r->store_fd) != 0)
		ret = wfs_err_errno(r->err, -errno, "%s", r->path);
	return ret;
}

/* ---- all of it ---- */

static int repair(struct repair *r)
{
	struct wfs_fsck_run run = {
		.path = r->path, .db_name = WORK, .store_fd = -1, .data_fd = -1, .holds_lock = true,
		.options = r->options, .err = r->err,
	};
	struct wfs_fix fix = {
		.run = &run, .kept_fd = -1, .dry_run = r->how->dry_run, .fn = r->how->done,
		.ctx = r->how->ctx, .settled = r->was_settled, .now_ns = wfs_now_ns(), .notes = tmpfile(),
	};
	int ret = r->how->dry_run ? 0 : keep_database(r);

	run.data_fd = openat(r->store_fd, "data", O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	if (ret == 0 && run.data_fd < 0)
		ret = wfs_err_errno(r->err, -errno, "%s/data", r->path);
	fix.kept_fd = r->kept_fd;
	if (ret == 0)
		ret = build_work(r, &fix);
	if (ret == 0)
		ret = run_rounds(&fix);
	wfs_fsck_close(&run);
	if (fix.notes)
		fclose(fix.notes);
	r->ret->actions = fix.actions;
	if (ret == 0 && !r->how->dry_run)
		ret = look_again(r);
	if (ret == 0 && !r->how->dry_run)
		ret = exchange(r);
	unlinkat(r->store_fd, WORK, 0);
	unlinkat(r->store_fd, WORK "-wal", 0);
	unlinkat(r->store_fd, WORK "-shm", 0);
	return ret;
}

int wfs_fsck_repair(const char *path, const struct wfs_fsck_options *options,
	const struct wfs_fsck_repair *how, struct wfs_fsck_repaired *ret, struct wfs_err *err)
{
	struct repair r = { .path = path, .options = options, .how = how, .ret = ret, .err = err,
		.store_fd = -1, .lock_fd = -1, .kept_fd = -1 };
	int result;

	*ret = (struct wfs_fsck_repaired){ .actions = 0 };
	result = take_lock(&r);
	if (result == 0)
		result = look(&r);
	ret->left = ret->before.findings;
	if (result == 0 && ret->before.findings > 0)
		result = repair(&r);
	if (r.kept_fd >= 0)
		close(r.kept_fd);
	if (r.store_fd >= 0)
		close(r.store_fd);
	if (r.lock_fd >= 0)
		close(r.lock_fd);
	return result;
}
