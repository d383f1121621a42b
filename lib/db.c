#include "lib/db.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "lib/array.h"
#include "lib/crash.h"
#include "lib/db_priv.h"
#include "lib/db_trust.h"
#include "lib/db_uri.h"
#include "lib/format.h"
#include "lib/wal_file.h"

#include "schema_sql.h"

/* What SQLite cannot open to write it opens to read: the disk has failed. A read-only one is seen before. */
static int errno_to_write(const struct wfs_db *db, int ret)
{
	return ret == -EROFS && !db->read_only ? -EIO : ret;
}

static int errno_of(int code)
{
	if (code == SQLITE_READONLY_DBMOVED) /* or it could not be looked at */
		return -EIO;
	switch (code & 0xff) {
	case SQLITE_FULL:
		return -ENOSPC;
	case SQLITE_NOMEM:
		return -ENOMEM;
	case SQLITE_READONLY:
	case SQLITE_PERM:
		return -EROFS;
	case SQLITE_BUSY:
	case SQLITE_LOCKED:
		return -EBUSY;
	case SQLITE_CORRUPT:
	case SQLITE_NOTADB:
		return -EUCLEAN;
	case SQLITE_TOOBIG:
		return -E2BIG;
	default:
		return -EIO;
	}
}

int wfs_db_error(struct wfs_db *db, int code, const char *what)
{
	int ret = errno_to_write(db, errno_of(code));
	char line[400];

	db->has_failed = true;
	if (db->log) {
		snprintf(line, sizeof(line), "database: %s: %s (%d)%s", what,
			db->handle ? sqlite3_errmsg(db->handle) : sqlite3_errstr(code),
			db->handle ? sqlite3_extended_errcode(db->handle) : code,
			ret == -EUCLEAN ? "; unmount and run weightfs fsck" : "");
		db->log(db->log_ctx, line);
	}
	return ret;
}

int wfs_db_pragma(sqlite3 *handle, const char *sql, int64_t *ret)
{
	sqlite3_stmt *stmt = NULL;
	int code = sqlite3_prepare_v2(handle, sql, -1, &stmt, NULL);

	if (code == SQLITE_OK)
		code = sqlite3_step(stmt);
	if (code == SQLITE_ROW) {
		*ret = sqlite3_column_int64(stmt, 0);
		code = SQLITE_OK;
	}
	sqlite3_finalize(stmt);
	return code;
}

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)

#include <sanitizer/common_interface_defs.h>

/* What SQLite finds wrong in how it is called is in its log; the call just fails. */
static void judge_log(void *ctx, int code, const char *text)
{
	(void)ctx;
	if ((code & 0xff) != SQLITE_MISUSE)
		return;
	fprintf(stderr, "SQLite: %s\n", text);
	__sanitizer_print_stack_trace();
	abort();
}

/* Before anybody uses SQLite: it takes this no later. */
static __attribute__((constructor)) void listen_to_sqlite(void)
{
	sqlite3_config(SQLITE_CONFIG_LOG, judge_log, NULL);
}

#endif

/* ---- statements ---- */

static int get_stmt(struct wfs_db *db, enum wfs_query q, sqlite3_stmt **ret)
{
	db->uses++;
	if (!db->stmts[q]) {
		int code = sqlite3_prepare_v3(db->handle, wfs_query_sql(q), -1,
			SQLITE_PREPARE_PERSISTENT, &db->stmts[q], NULL);

		if (code != SQLITE_OK)
			return wfs_db_error(db, code, wfs_query_sql(q));
	}
	*ret = db->stmts[q];
	return 0;
}

static int bind_one(sqlite3_stmt *stmt, int at, char type, va_list *ap)
{
	switch (type) {
	case 'i':
		return sqlite3_bind_int64(stmt, at, va_arg(*ap, int64_t));
	case 'o': {
		int64_t v = va_arg(*ap, int64_t);

		return v ? sqlite3_bind_int64(stmt, at, v) : sqlite3_bind_null(stmt, at);
	}
	case 'b': {
		const void *p = va_arg(*ap, const void *);
		size_t len = va_arg(*ap, size_t);

		return p ? sqlite3_bind_blob64(stmt, at, p, len, SQLITE_STATIC)
			 : sqlite3_bind_null(stmt, at);
	}
	case 't':
		return sqlite3_bind_text(stmt, at, va_arg(*ap, const char *), -1, SQLITE_STATIC);
	default:
		assert(!"unknown bind type");
		return SQLITE_MISUSE;
	}
}

static int prepare(struct wfs_db *db, enum wfs_query q, sqlite3_stmt **ret, const char *types,
	va_list *ap)
{
	int code = SQLITE_OK;
	int err = get_stmt(db, q, ret);

	if (err)
		return err;
	for (int i = 0; types[i] && code == SQLITE_OK; i++)
		code = bind_one(*ret, i + 1, types[i], ap);
	if (code == SQLITE_OK)
		return 0;
	wfs_db_done(*ret);
	return wfs_db_error(db, code, wfs_query_sql(q));
}

void wfs_db_done(sqlite3_stmt *stmt)
{
	sqlite3_reset(stmt);
	sqlite3_clear_bindings(stmt);
}

int wfs_db_next(struct wfs_db *db, sqlite3_stmt *stmt)
{
	int code = sqlite3_step(stmt);
	int ret;

	db->uses++;
	if (code == SQLITE_ROW)
		return 1;
	ret = code == SQLITE_DONE ? 0 : wfs_db_error(db, code, sqlite3_sql(stmt));
	wfs_db_done(stmt);
	return ret;
}

int wfs_db_run(struct wfs_db *db, enum wfs_query q, const char *types, ...)
{
	sqlite3_stmt *stmt;
	va_list ap;
	int ret;

	va_start(ap, types);
	ret = prepare(db, q, &stmt, types, &ap);
	va_end(ap);
	if (ret)
		return ret;
	do
		ret = wfs_db_next(db, stmt);
	while (ret > 0);
	return ret;
}

int wfs_db_first(struct wfs_db *db, enum wfs_query q, sqlite3_stmt **ret, const char *types, ...)
{
	va_list ap;
	int err;

	va_start(ap, types);
	err = prepare(db, q, ret, types, &ap);
	va_end(ap);
	return err ? err : wfs_db_next(db, *ret);
}

int wfs_db_number(struct wfs_db *db, enum wfs_query q, uint64_t *ret, const char *types, ...)
{
	sqlite3_stmt *stmt;
	va_list ap;
	int found;

	va_start(ap, types);
	found = prepare(db, q, &stmt, types, &ap);
	va_end(ap);
	if (found == 0)
		found = wfs_db_next(db, stmt);
	if (found <= 0)
		return found;
	found = sqlite3_column_type(stmt, 0) != SQLITE_NULL;
	*ret = (uint64_t)sqlite3_column_int64(stmt, 0);
	wfs_db_done(stmt);
	return found;
}

int wfs_db_list(struct wfs_db *db, enum wfs_query q, uint64_t **ret, size_t *ret_n,
	const char *types, ...)
{
	uint64_t *list = NULL;
	size_t n = 0, room = 0;
	sqlite3_stmt *stmt;
	va_list ap;
	int more;

	va_start(ap, types);
	more = prepare(db, q, &stmt, types, &ap);
	va_end(ap);
	while (more == 0 && (more = wfs_db_next(db, stmt)) > 0) {
		more = WFS_ARRAY_ROOM(list, n, room);
		if (more)
			wfs_db_done(stmt);
		else
			list[n++] = (uint64_t)sqlite3_column_int64(stmt, 0);
	}
	if (more) {
		free(list);
		return more;
	}
	*ret = list;
	*ret_n = n;
	return 0;
}

uint64_t wfs_db_insert_id(struct wfs_db *db)
{
	return (uint64_t)sqlite3_last_insert_rowid(db->handle);
}

int wfs_db_changes(struct wfs_db *db)
{
	return sqlite3_changes(db->handle);
}

/* ---- transactions ---- */

/*
 * A query that is left at its first row. While it is, SQLite keeps the lock of
 * this connection's view of the log, which follows what the connection itself
 * commits; each transaction and each query outside of one would take it anew,
 * with half a dozen system calls. The log cannot be moved meanwhile.
 */
static void hold_view(struct wfs_db *db)
{
	sqlite3_stmt *stmt = NULL;

	if (db->read_only || db->holds_view || get_stmt(db, WFS_Q_VIEW, &stmt) != 0)
		return;
	db->holds_view = sqlite3_step(stmt) == SQLITE_ROW;
	if (!db->holds_view)
		sqlite3_reset(stmt);
}

void wfs_db_drop_view(struct wfs_db *db)
{
	if (db->holds_view)
		sqlite3_reset(db->stmts[WFS_Q_VIEW]);
	db->holds_view = false;
}

/* After an error SQLite answers each query with that error, until nobody has a view any more. */
static void drop_failed_view(struct wfs_db *db)
{
	if (db->has_failed)
		wfs_db_drop_view(db);
	db->has_failed = false;
}

/* A statement without parameters and rows. An SQLite result code. */
static int step_once(struct wfs_db *db, enum wfs_query q)
{
	sqlite3_stmt *stmt = NULL;

	if (get_stmt(db, q, &stmt) != 0)
		return SQLITE_ERROR;
	sqlite3_step(stmt);
	return sqlite3_reset(stmt); /* the same code */
}

static void take_lock(struct wfs_db *db)
{
	atomic_fetch_add(&db->waiting, 1);
	pthread_mutex_lock(&db->lock);
	atomic_fetch_sub(&db->waiting, 1);
}

bool wfs_db_is_wanted(struct wfs_db *db)
{
	return atomic_load(&db->waiting) > 0;
}

/* A transaction that could not be undone for want of memory is undone before the next one. */
static int undo_left(struct wfs_db *db)
{
	return sqlite3_get_autocommit(db->handle) ? SQLITE_OK : step_once(db, WFS_Q_ROLLBACK);
}

static int begin(struct wfs_db *db, enum wfs_query q)
{
	int code;

	take_lock(db);
	hold_view(db);
	code = undo_left(db);
	if (code == SQLITE_OK)
		code = step_once(db, q);
	/* Another process has written, which none should: the view is of before. */
	if ((code & 0xff) == SQLITE_BUSY && db->holds_view) {
		wfs_db_drop_view(db);
		code = step_once(db, q);
	}
	if (code == SQLITE_OK) {
		db->in_transaction = true;
		return 0;
	}
	code = wfs_db_error(db, code, wfs_query_sql(q));
	drop_failed_view(db);
	pthread_mutex_unlock(&db->lock);
	return code;
}

/* Where the log cannot be moved, not every transaction tries it again. */
static void bound_log(struct wfs_db *db)
{
	bool is_due;
	int pages;

	pthread_mutex_lock(&db->lock);
	pages = db->wal_pages;
	is_due = pages >= db->bound_pages;
	if (is_due)
		db->bound_pages = pages + WFS_DB_LOG_BOUND / 4;
	pthread_mutex_unlock(&db->lock);
	if (is_due)
		wfs_db_checkpoint(db, WFS_DB_LOG_BOUND);
}

int wfs_db_begin(struct wfs_db *db)
{
	if (atomic_load(&db->is_lost))
		return -EIO;
	bound_log(db);
	return begin(db, WFS_Q_BEGIN);
}

int wfs_db_begin_read(struct wfs_db *db)
{
	/* The only writer is this process, and it holds the lock. */
	if (!db->read_only) {
		int code;

		take_lock(db);
		hold_view(db);
		code = undo_left(db);
		if (code == SQLITE_OK)
			return 0;
		code = wfs_db_error(db, code, wfs_query_sql(WFS_Q_ROLLBACK));
		drop_failed_view(db);
		pthread_mutex_unlock(&db->lock);
		return code;
	}
	return begin(db, WFS_Q_BEGIN_READ);
}

int wfs_db_try_begin_read(struct wfs_db *db)
{
	if (db->read_only)
		return -EBUSY; /* to begin takes locks of the disk's */
	if (pthread_mutex_trylock(&db->lock) != 0)
		return -EBUSY;
	hold_view(db);
	return 0;
}

int wfs_db_end(struct wfs_db *db, int ret)
{
	int code = SQLITE_OK;

	if (db->is_broken && ret >= 0)
		ret = -EIO;
	if (db->in_transaction && ret >= 0) {
		code = step_once(db, WFS_Q_COMMIT);
		wfs_db_note_failed_sync(db, code);
		if (code == SQLITE_OK)
			db->commits++;
		else
			ret = wfs_db_error(db, code, "commit");
	}
	/* SQLite rolls back by itself after some errors. */
	if (db->in_transaction && ret < 0 && !sqlite3_get_autocommit(db->handle))
		step_once(db, WFS_Q_ROLLBACK);
	db->in_transaction = false;
	db->is_broken = false;
	drop_failed_view(db);
	pthread_mutex_unlock(&db->lock);
	return ret;
}

int wfs_db_begin_part(struct wfs_db *db)
{
	int code = step_once(db, WFS_Q_PART);

	return code == SQLITE_OK ? 0 : wfs_db_error(db, code, wfs_query_sql(WFS_Q_PART));
}

int wfs_db_end_part(struct wfs_db *db, int ret)
{
	if (ret < 0 && step_once(db, WFS_Q_PART_UNDO) != SQLITE_OK)
		db->is_broken = true;
	if (step_once(db, WFS_Q_PART_END) != SQLITE_OK)
		db->is_broken = true;
	return ret;
}

/* ---- opening ---- */

static const struct wfs_db_migration migrations[] = {
	/* whole copies: new columns come last, in lib/schema.sql, too */
	{ 2, "ALTER TABLE manifest ADD COLUMN whole INTEGER REFERENCES data_file (id);"
	     "ALTER TABLE manifest ADD COLUMN shared INTEGER NOT NULL DEFAULT 0 CHECK (shared >= 0);"
	     "CREATE UNIQUE INDEX manifest_by_whole ON manifest (whole) WHERE whole IS NOT NULL" },
	/* an open that does not look at every object */
	{ 3, "ALTER TABLE manifest ADD COLUMN solid INTEGER NOT NULL DEFAULT 0 CHECK (solid IN (0, 1));"
	     "UPDATE manifest SET solid = 1 WHERE refs > 0 AND whole IS NULL AND id IN ("
	     "SELECT manifest FROM (SELECT m.manifest, o.data_file, o.offset, o.length,"
	     " sum(o.length) OVER (PARTITION BY m.manifest ORDER BY m.seq) - o.length AS at"
	     " FROM manifest_object m JOIN object o ON o.id = m.object)"
	     " GROUP BY manifest HAVING count(data_file) = count(*)"
	     " AND min(data_file) = max(data_file) AND min(offset = at) = 1)" },
	/* tensors that are written one by one */
	{ 4, "CREATE TABLE tensor ( dir INTEGER NOT NULL REFERENCES inode (ino), variant "
	     "BLOB NOT NULL, name BLOB NOT NULL, ino INTEGER REFERENCES inode (ino), form "
	     "INTEGER NOT NULL, dtype TEXT NOT NULL, shape TEXT NOT NULL, start INTEGER NOT "
	     "NULL CHECK (start >= 0), length INTEGER NOT NULL CHECK (length >= 0), PRIMARY "
	     "KEY (dir, variant, name) ) WITHOUT ROWID;"
	     "CREATE INDEX tensor_by_ino ON tensor (ino) WHERE ino IS NOT NULL" },
	/* what is known to be damaged */
	{ 5, "CREATE TABLE damage ( object INTEGER PRIMARY KEY REFERENCES object (id), reason "
	     "INTEGER NOT NULL, found_ns INTEGER NOT NULL )" },
};

static int exec_step(sqlite3 *handle, const struct wfs_db_migration *step)
{
	char version[64];
	int code = sqlite3_exec(handle, "BEGIN EXCLUSIVE", NULL, NULL, NULL);

	if (code != SQLITE_OK)
		return code;
	snprintf(version, sizeof(version), "PRAGMA user_version = %u", step->to);
	code = sqlite3_exec(handle, step->sql, NULL, NULL, NULL);
	if (code == SQLITE_OK)
		code = sqlite3_exec(handle, version, NULL, NULL, NULL);
	wfs_crash_at("migrate-before-commit");
	if (code == SQLITE_OK)
		code = sqlite3_exec(handle, "COMMIT", NULL, NULL, NULL);
	wfs_crash_at("migrate-after-commit");
	if (code != SQLITE_OK)
		sqlite3_exec(handle, "ROLLBACK", NULL, NULL, NULL);
	return code;
}

int wfs_db_migrate(sqlite3 *handle, unsigned have, unsigned want,
	const struct wfs_db_migration *steps, size_t n, struct wfs_err *err)
{
	while (have < want) {
		const struct wfs_db_migration *step = NULL;
		int code;

		for (size_t i = 0; i < n; i++)
			if (steps[i].to == have + 1 && steps[i].sql)
				step = &steps[i];
		if (!step)
			break;
		code = exec_step(handle, step);
		if (code != SQLITE_OK)
			return wfs_err_set(err, errno_of(code), "store-migration", WFS_NO_OFFSET,
				"%s could not be brought from format %u to %u: %s; it is as it was",
				sqlite3_db_filename(handle, "main"), have, step->to,
				sqlite3_errmsg(handle));
		have = step->to;
	}
	if (have != want)
		return wfs_err_set(err, -EPROTONOSUPPORT, "store-version", WFS_NO_OFFSET,
			"%s has format version %u; this weightfs knows version %u%s",
			sqlite3_db_filename(handle, "main"), have, want,
			have && have < want ? ": mount the store once, and it is brought forward" : "");
	return 0;
}

static int open_failed(struct wfs_db *db, int code, struct wfs_err *err)
{
	int ret = errno_to_write(db, errno_of(code));
	const char *why = db->handle ? sqlite3_errmsg(db->handle) : sqlite3_errstr(code);

	if ((code & 0xff) == SQLITE_NOTADB)
		return wfs_err_set(err, -EINVAL, "not-a-store", WFS_NO_OFFSET,
			"%s is not a weightfs database: %s", db->path, why);
	if (code == SQLITE_READONLY_RECOVERY)
		return wfs_err_set(err, ret, "store-not-unmounted", WFS_NO_OFFSET,
			"%s has a log beside it that can be read only where it can be written: mount the "
			"store there once", db->path);
	if (ret == -EUCLEAN)
		return wfs_err_set(err, ret, "store-damaged", WFS_NO_OFFSET,
			"%s is damaged: %s; run weightfs fsck", db->path, why);
	return wfs_err_set(err, ret, "io", WFS_NO_OFFSET, "%s: %s", db->path, why);
}

static bool has_log(const struct wfs_db *db)
{
	WFS_AUTO_FREE char *path = wfs_format("%s-wal", db->path);
	struct stat st;

	if (!path)
		return true;
	return stat(path, &st) == 0 && st.st_size > 0;
}

/*
 * A reader of a log needs to write the shared-memory file beside it. Where it
 * may not (a store on read-only media) and there is no log, the database file
 * alone is the whole truth.
 */
static int open_handle(struct wfs_db *db, bool create)
{
	int flags = SQLITE_OPEN_NOMUTEX | SQLITE_OPEN_EXRESCODE | SQLITE_OPEN_NOFOLLOW;
	WFS_AUTO_FREE char *uri = NULL;
	int code;

	if (!db->read_only)
		flags |= SQLITE_OPEN_READWRITE | (create ? SQLITE_OPEN_CREATE : 0);
	else
		flags |= SQLITE_OPEN_READONLY;
	code = sqlite3_open_v2(db->path, &db->handle, flags, db->read_only ? NULL : wfs_wal_vfs());
	/* SQLite opens to read what it cannot open to write. */
	if (code == SQLITE_OK && !db->read_only && sqlite3_db_readonly(db->handle, "main") == 1)
		code = SQLITE_CANTOPEN;
	if (code == SQLITE_OK)
		code = wfs_db_trust_nothing(db->handle);
	if (code != SQLITE_OK || !db->read_only)
		return code;
	code = sqlite3_exec(db->handle, "SELECT 1 FROM sqlite_schema", NULL, NULL, NULL);
	if ((code & 0xff) != SQLITE_CANTOPEN && (code & 0xff) != SQLITE_READONLY)
		return SQLITE_OK;
	sqlite3_close(db->handle);
	db->handle = NULL;
	if (has_log(db))
		return SQLITE_READONLY_RECOVERY;
	uri = wfs_db_immutable_uri(db->path);
	if (!uri)
		return SQLITE_NOMEM;
	code = sqlite3_open_v2(uri, &db->handle, flags | SQLITE_OPEN_URI, NULL);
	return code == SQLITE_OK ? wfs_db_trust_nothing(db->handle) : code;
}

/* Has it no table? Of a process that died as it made the store, SQLite undoes what there is. */
static int is_empty(struct wfs_db *db, bool *ret)
{
	int64_t tables = 0;
	int code = wfs_db_pragma(db->handle, "SELECT count(*) FROM sqlite_schema", &tables);

	*ret = tables == 0;
	return code;
}

static int create_schema(struct wfs_db *db)
{
	char sql[160];
	int64_t pages = 0;
	int code = wfs_db_pragma(db->handle, "PRAGMA page_count", &pages);

	/* Before the first table: pages can then be given back one by one. */
	sqlite3_limit(db->handle, SQLITE_LIMIT_ATTACHED, 1); /* VACUUM needs one */
	if (code == SQLITE_OK)
		code = sqlite3_exec(db->handle, pages ? "PRAGMA auto_vacuum = INCREMENTAL; VACUUM"
			: "PRAGMA auto_vacuum = INCREMENTAL", NULL, NULL, NULL);
	sqlite3_limit(db->handle, SQLITE_LIMIT_ATTACHED, 0);
	if (code == SQLITE_OK)
		code = sqlite3_exec(db->handle, "BEGIN EXCLUSIVE", NULL, NULL, NULL);
	if (code == SQLITE_OK)
		code = sqlite3_exec(db->handle, wfs_schema_sql, NULL, NULL, NULL);
	snprintf(sql, sizeof(sql), "PRAGMA application_id = %d; PRAGMA user_version = %d; COMMIT",
		WFS_DB_APPLICATION_ID, WFS_DB_VERSION);
	if (code == SQLITE_OK)
		code = sqlite3_exec(db->handle, sql, NULL, NULL, NULL);
	return code;
}

static int check_version(struct wfs_db *db, struct wfs_err *err)
{
	int64_t app = 0, version = 0;
	int code = wfs_db_pragma(db->handle, "PRAGMA application_id", &app);

	if (code == SQLITE_OK)
		code = wfs_db_pragma(db->handle, "PRAGMA user_version", &version);
	if (code != SQLITE_OK)
		return open_failed(db, code, err);
	if (app != WFS_DB_APPLICATION_ID)
		return wfs_err_set(err, -EINVAL, "not-a-store", WFS_NO_OFFSET,
			"%s is an SQLite database, but not of weightfs", db->path);
	if (version < 1 || version > UINT32_MAX)
		version = 0;
	if (version <= WFS_DB_VERSION) {
		int ret = wfs_db_trust_schema(db->handle, wfs_schema_sql, err);

		if (ret || version == WFS_DB_VERSION)
			return ret > 0 ? open_failed(db, ret, err) : ret;
	}
	if (db->read_only || version > WFS_DB_VERSION)
		return wfs_db_migrate(db->handle, (unsigned)version, WFS_DB_VERSION, NULL, 0, err);
	return wfs_db_migrate(db->handle, (unsigned)version, WFS_DB_VERSION, migrations,
		WFS_ARRAY_SIZE(migrations), err);
}

static int count_pages(void *ctx, sqlite3 *handle, const char *name, int pages)
{
	struct wfs_db *db = ctx;

	(void)handle;
	(void)name;
	db->wal_pages = pages;
	return SQLITE_OK;
}

static int set_pragmas(struct wfs_db *db)
{
	int code = sqlite3_exec(db->handle, "PRAGMA temp_store = MEMORY; PRAGMA cache_size = -16384",
		NULL, NULL, NULL);

	sqlite3_busy_timeout(db->handle, WFS_DB_BUSY_MS);
	if (code != SQLITE_OK || db->read_only)
		return code;
	/* In place of SQLite's own checkpoints: this hook is where they would start. */
	sqlite3_wal_hook(db->handle, count_pages, db);
	return sqlite3_exec(db->handle,
		"PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL;"
		"PRAGMA journal_size_limit = 67108864;",
		NULL, NULL, NULL);
}

/* What ends a transaction is not to fail for want of memory. */
static int prepare_ends(struct wfs_db *db)
{
	static const enum wfs_query ends[] = { WFS_Q_COMMIT, WFS_Q_ROLLBACK, WFS_Q_PART_END,
		WFS_Q_PART_UNDO };
	sqlite3_stmt *stmt;
	int ret = 0;

	for (size_t i = 0; i < WFS_ARRAY_SIZE(ends) && ret == 0; i++)
		ret = get_stmt(db, ends[i], &stmt);
	return ret;
}

/* The log exists only after the first write; our descriptor of it is for fdatasync. */
static int open_wal(struct wfs_db *db, struct wfs_err *err)
{
	WFS_AUTO_FREE char *path = NULL;
	int64_t clean = 0;
	int code;

	wfs_db_pragma(db->handle, "SELECT value FROM meta WHERE key = 'clean'", &clean);
	db->was_clean = clean == 1;
	code = sqlite3_exec(db->handle,
		"BEGIN IMMEDIATE; INSERT OR REPLACE INTO meta (key, value) VALUES ('clean', 0);"
		"COMMIT", NULL, NULL, NULL);

	if (code != SQLITE_OK)
		return open_failed(db, code, err);
	db->commits++;
	path = wfs_format("%s-wal", db->path);
	if (!path)
		return -ENOMEM;
	db->wal_fd = open(path, O_RDWR | O_NOFOLLOW | O_CLOEXEC);
	if (db->wal_fd < 0)
		return wfs_err_errno(err, -errno, "%s", path);
	return 0;
}

/*
 * What is in the log only by the page cache of this machine, since a sync of the process before
 * this one has failed, goes to the disk: SQLite takes what it can read for what is there.
 */
static int settle_log(struct wfs_db *db, struct wfs_err *err)
{
	WFS_AUTO_FREE char *path = NULL;
	WFS_AUTO_CLOSE int fd = -1;
	int ret;

	if (db->read_only)
		return 0;
	path = wfs_format("%s-wal", db->path);
	if (!path)
		return -ENOMEM;
	fd = open(path, O_RDWR | O_CLOEXEC | O_NOFOLLOW);
	if (fd < 0)
		return errno == ENOENT ? 0 : wfs_err_errno(err, -errno, "%s", path);
	ret = wfs_wal_rewrite(fd, 0);
	return ret ? wfs_err_errno(err, ret, "%s cannot be written", path) : 0;
}

static int open_all(struct wfs_db *db, bool create, struct wfs_err *err)
{
	bool empty = false;
	int code, ret = wfs_db_trust_files(db->path, err);

	if (!ret)
		ret = settle_log(db, err);

	if (ret)
		return ret;
	code = open_handle(db, create);
	if (code == SQLITE_OK && create)
		code = is_empty(db, &empty);
	if (code == SQLITE_OK && empty)
		code = create_schema(db);
	if (code != SQLITE_OK)
		return open_failed(db, code, err);
	ret = check_version(db, err);
	if (ret)
		return ret;
	code = set_pragmas(db);
	if (code != SQLITE_OK)
		return open_failed(db, code, err);
	ret = prepare_ends(db);
	return ret || db->read_only ? ret : open_wal(db, err);
}

int wfs_db_open(struct wfs_db *db, const char *dir, bool read_only, bool create,
	struct wfs_err *err)
{
	int ret;

	memset(db->stmts, 0, sizeof(db->stmts));
	db->handle = NULL;
	db->commits = 0;
	wfs_db_log_is_moved(db);
	db->synced = db->uses = 0;
	db->in_transaction = false;
	db->holds_view = db->is_broken = db->has_failed = false;
	atomic_init(&db->is_lost, false);
	atomic_init(&db->log_failed, false);
	atomic_init(&db->waiting, 0);
	db->read_only = read_only;
	db->wal_fd = -1;
	pthread_mutex_init(&db->lock, NULL);
	pthread_mutex_init(&db->sync_lock, NULL);
	db->path = wfs_format("%s/weightfs.db", dir);
	ret = db->path ? open_all(db, create, err) : -ENOMEM;
	if (ret)
		wfs_db_close(db);
	return ret;
}

void wfs_db_close(struct wfs_db *db)
{
	for (size_t i = 0; i < WFS_QUERY_COUNT; i++)
		sqlite3_finalize(db->stmts[i]);
	if (db->handle && (atomic_load(&db->log_failed) || atomic_load(&db->is_lost)))
		sqlite3_db_config(db->handle, SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1, NULL);
	sqlite3_close(db->handle);
	if (db->wal_fd >= 0)
		close(db->wal_fd);
	free(db->path);
	pthread_mutex_destroy(&db->lock);
	pthread_mutex_destroy(&db->sync_lock);
	db->handle = NULL;
	db->path = NULL;
}
