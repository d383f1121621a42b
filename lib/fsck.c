#include "lib/fsck.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>

#include "lib/db_trust.h"
#include "lib/db_uri.h"
#include "lib/format.h"
#include "lib/fsck_check.h"

#define APPLICATION_ID 0x57744653
#define FORMAT_VERSION 5

#define LENGTH_LIMIT (16 << 20)  /* bytes of one value: 64 times the largest that is ever stored */
#define STEPS_FREE 20000000      /* steps that any check may take */
#define STEPS_PER_BYTE 32        /* and for each byte of the database; sound ones take under 4 */

bool wfs_fsck_in_use(struct wfs_fsck_run *run)
{
	WFS_AUTO_CLOSE int fd = run->holds_lock ? -1 : openat(run->store_fd, "lock",
		O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);

	/* Given back by close at once: a mount that starts now must not be refused. */
	return fd >= 0 && flock(fd, LOCK_SH | LOCK_NB) != 0 && errno == EWOULDBLOCK;
}

static int open_handle(const char *path, bool immutable, sqlite3 **ret)
{
	int flags = SQLITE_OPEN_READONLY | SQLITE_OPEN_NOMUTEX | SQLITE_OPEN_EXRESCODE;
	WFS_AUTO_FREE char *uri = immutable ? wfs_db_immutable_uri(path) : NULL;

	*ret = NULL;
	if (immutable && !uri)
		return SQLITE_NOMEM;
	return sqlite3_open_v2(immutable ? uri : path, ret,
		flags | (immutable ? SQLITE_OPEN_URI : 0), NULL);
}

/* Takes nothing in the file for granted: loading the schema is held to the budget, too. */
static int open_hardened(struct wfs_fsck_run *run, const char *path, bool immutable, sqlite3 **ret)
{
	int code = open_handle(path, immutable, ret);

	if (code != SQLITE_OK)
		return code;
	sqlite3_progress_handler(*ret, WFS_FSCK_STEPS_UNIT, wfs_fsck_count_steps, run);
	sqlite3_db_config(*ret, SQLITE_DBCONFIG_DEFENSIVE, 1, NULL);
	sqlite3_limit(*ret, SQLITE_LIMIT_LENGTH, LENGTH_LIMIT);
	sqlite3_busy_timeout(*ret, 10000);
	return sqlite3_exec(*ret,
		"PRAGMA query_only = ON; PRAGMA trusted_schema = OFF;"
		"PRAGMA cell_size_check = ON; PRAGMA mmap_size = 0;"
		"PRAGMA cache_size = -32768; SELECT 1 FROM sqlite_schema LIMIT 1",
		NULL, NULL, NULL);
}

static int open_connection(struct wfs_fsck_run *run, sqlite3 **ret)
{
	WFS_AUTO_FREE char *path = wfs_format("%s/%s", run->path, run->db_name);
	int code;

	if (!path)
		return SQLITE_NOMEM;
	code = open_hardened(run, path, false, ret);
	if ((code & 0xff) != SQLITE_CANTOPEN && (code & 0xff) != SQLITE_READONLY)
		return code;
	/* A store on read-only media: without a log the file is the whole truth. */
	sqlite3_close(*ret);
	return open_hardened(run, path, true, ret);
}

bool wfs_fsck_still(struct wfs_fsck_run *run, const char *sql, int64_t a, int64_t b)
{
	sqlite3_stmt *stmt = NULL;
	bool gone;

	if (!run->fresh && open_connection(run, &run->fresh) != SQLITE_OK)
		return true;
	if (sqlite3_prepare_v2(run->fresh, sql, -1, &stmt, NULL) == SQLITE_OK) {
		sqlite3_bind_int64(stmt, 1, a);
		if (sqlite3_bind_parameter_count(stmt) > 1)
			sqlite3_bind_int64(stmt, 2, b);
	}
	gone = stmt && sqlite3_step(stmt) == SQLITE_DONE;
	sqlite3_finalize(stmt);
	return !gone;
}

static int open_failed(struct wfs_fsck_run *run, int code)
{
	const char *why = run->db ? sqlite3_errmsg(run->db) : sqlite3_errstr(code);
	int ret = wfs_fsck_errno(code);

	if (ret)
		return wfs_err_set(run->err, ret, "io", WFS_NO_OFFSET, "%s/weightfs.db: %s",
			run->path, why);
	if ((code & 0xff) == SQLITE_NOTADB)
		return wfs_err_set(run->err, -EINVAL, "not-a-store", WFS_NO_OFFSET,
			"%s/weightfs.db is not a database of weightfs: %s", run->path, why);
	return wfs_err_set(run->err, -EUCLEAN, "store-damaged", WFS_NO_OFFSET,
		"%s/weightfs.db is too damaged to be checked: %s", run->path, why);
}

/* SQLite opens what lies beside the database, too. */
static int check_files(struct wfs_fsck_run *run)
{
	WFS_AUTO_FREE char *path = wfs_format("%s/weightfs.db", run->path);

	if (!path)
		return -ENOMEM;
	return wfs_db_trust_files(path, run->err);
}

static int open_directories(struct wfs_fsck_run *run)
{
	struct stat st;

	run->store_fd = open(run->path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (run->store_fd < 0 && errno == ENOENT)
		return wfs_err_set(run->err, -ENOENT, "store-missing", WFS_NO_OFFSET,
			"%s: no such store", run->path);
	if (run->store_fd < 0 && errno == ENOTDIR)
		return wfs_err_set(run->err, -ENOTDIR, "not-a-directory", WFS_NO_OFFSET,
			"%s is not a directory", run->path);
	if (run->store_fd < 0)
		return wfs_err_errno(run->err, -errno, "%s", run->path);
	st.st_mode = 0;
	if (fstatat(run->store_fd, run->db_name, &st, AT_SYMLINK_NOFOLLOW) != 0 && errno != ENOENT)
		return wfs_err_errno(run->err, -errno, "%s/%s", run->path, run->db_name);
	if (!S_ISREG(st.st_mode))
		return wfs_err_set(run->err, -ENOTEMPTY, "not-a-store", WFS_NO_OFFSET,
			"%s is not a store: it has no file weightfs.db", run->path);
	run->data_fd = openat(run->store_fd, "data",
		O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	/* One that is not there is found; of one that cannot be opened nothing is known. */
	if (run->data_fd < 0 && errno != ENOENT && errno != ENOTDIR && errno != ELOOP)
		return wfs_err_errno(run->err, -errno, "%s/data", run->path);
	return check_files(run);
}

/* The first column of the first row; *ret stays where there is none. */
static int read_number(struct wfs_fsck_run *run, const char *sql, int64_t *ret)
{
	sqlite3_stmt *stmt = NULL;
	int code = sqlite3_prepare_v2(run->db, sql, -1, &stmt, NULL);

	if (code == SQLITE_OK)
		code = sqlite3_step(stmt);
	if (code == SQLITE_ROW)
		*ret = sqlite3_column_int64(stmt, 0);
	sqlite3_finalize(stmt);
	return code == SQLITE_ROW || code == SQLITE_DONE ? SQLITE_OK : code;
}

static int check_version(struct wfs_fsck_run *run)
{
	int64_t app = 0, version = 0;
	int code = read_number(run, "PRAGMA application_id", &app);

	if (code == SQLITE_OK)
		code = read_number(run, "PRAGMA user_version", &version);
	if (code != SQLITE_OK)
		return open_failed(run, code);
	if (app != APPLICATION_ID)
		return wfs_err_set(run->err, -EINVAL, "not-a-store", WFS_NO_OFFSET,
			"%s/weightfs.db is an SQLite database, but not of weightfs", run->path);
	if (version != FORMAT_VERSION)
		return wfs_err_set(run->err, -EPROTONOSUPPORT, "store-version", WFS_NO_OFFSET,
			"the store has format version %lld; this weightfs knows version %d%s",
			(long long)version, FORMAT_VERSION,
			version > 0 && version < FORMAT_VERSION
				? ": mount the store once, and it is brought forward"
				: "");
	return 0;
}

/* Steps that a check may take: in proportion to the database. */
static int set_budget(struct wfs_fsck_run *run)
{
	int64_t pages = 0, page_size = 0;
	int code = read_number(run, "PRAGMA page_count", &pages);

	if (code == SQLITE_OK)
		code = read_number(run, "PRAGMA page_size", &page_size);
	if (code != SQLITE_OK)
		return open_failed(run, code);
	run->budget = STEPS_FREE + STEPS_PER_BYTE * (uint64_t)pages * (uint64_t)page_size;
	return 0;
}

static int open_database(struct wfs_fsck_run *run)
{
	int64_t clean = 0, rows = 0;
	int code, ret;

	/* Before the transaction begins: a writer that ends in between leaves a settled state. */
	run->in_use = wfs_fsck_in_use(run);
	code = open_connection(run, &run->db);
	if (code == SQLITE_OK)
		code = sqlite3_exec(run->db, "BEGIN", NULL, NULL, NULL);
	if (code == SQLITE_OK)
		code = read_number(run, "SELECT sum(1) FROM sqlite_schema", &rows);
	if (code != SQLITE_OK)
		return open_failed(run, code);
	ret = check_version(run);
	if (ret == 0)
		ret = set_budget(run);
	/* Where meta cannot be read the checks of the schema say so. */
	if (ret == 0) {
		code = read_number(run, "SELECT value FROM meta WHERE key = 'clean'", &clean);
		ret = wfs_fsck_errno(code) ? open_failed(run, code) : 0;
	}
	run->clean = clean == 1;
	return ret;
}

void wfs_fsck_close(struct wfs_fsck_run *run)
{
	free(run->excused);
	sqlite3_finalize(run->name_of);
	sqlite3_close(run->fresh);
	sqlite3_close(run->db);
	if (run->data_fd >= 0)
		close(run->data_fd);
	if (run->store_fd >= 0)
		close(run->store_fd);
}

static int check_parts(struct wfs_fsck_run *run)
{
	int ret = wfs_fsck_schema(run);

	if (ret <= 0)
		return ret;
	ret = wfs_fsck_integrity(run);
	if (ret == 0)
		ret = wfs_fsck_count(run);
	if (ret == 0)
		ret = wfs_fsck_find_excused(run);
	if (ret == 0)
		ret = wfs_fsck_names(run);
	if (ret == 0)
		ret = wfs_fsck_content(run);
	if (ret == 0)
		ret = wfs_fsck_data(run);
	if (ret == 0 && run->options->check_bytes)
		ret = wfs_fsck_bytes(run);
	return ret;
}

int wfs_fsck_check_all(struct wfs_fsck_run *run)
{
	int ret = open_directories(run);

	run->budget = STEPS_FREE;
	if (ret == 0)
		ret = open_database(run);
	ret = ret ? ret : check_parts(run);
	return ret ? ret : run->failed;
}

int wfs_fsck(const char *path, const struct wfs_fsck_options *options,
	void (*fn)(void *ctx, const struct wfs_fsck_finding *finding), void *ctx,
	struct wfs_fsck_summary *ret, struct wfs_err *err)
{
	struct wfs_fsck_run run = {
		.path = path, .db_name = "weightfs.db", .store_fd = -1, .data_fd = -1,
		.options = options, .fn = fn, .ctx = ctx, .err = err,
	};
	int result = wfs_fsck_check_all(&run);

	if (result == 0)
		*ret = run.summary;
	wfs_fsck_close(&run);
	return result;
}
