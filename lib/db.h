/*
 * db.h - the database connection: open, version, statements, transactions.
 *
 * One connection for a process, guarded by one mutex. Every transaction is
 * written to the write-ahead log before its function returns (it survives the
 * process); wfs_db_sync makes what was committed before it survive a power
 * cut. The kernel may do that at any time, too: the bytes that a transaction needs are on
 * the disk before it is committed (lib/flush.h). Checkpoints are ours to start
 * (wfs_db_checkpoint), never SQLite's own: they wait for the disk.
 *
 * Lock order: the database lock is the last but for the data file table's
 * (docs/locking.md). Nothing that waits for a disk or a thread happens under it
 * except SQLite's own reads and writes.
 */
#ifndef WFS_DB_H
#define WFS_DB_H

#include <pthread.h>
#include <sqlite3.h>
#include <stdatomic.h>

#include "lib/base.h"
#include "lib/err.h"
#include "lib/query.h"

#define WFS_DB_APPLICATION_ID 0x57744653
#define WFS_DB_VERSION 5

/*
 * Pages in the log (12 MiB) at which the next transaction waits until the log is
 * moved, where nobody called wfs_db_checkpoint in time. The log's file, and what
 * the database grows by in a checkpoint, then have a bound (lib/reserve.h).
 */
#define WFS_DB_LOG_BOUND 3072

struct wfs_db {
	pthread_mutex_t lock;
	/* under lock */
	sqlite3 *handle;
	sqlite3_stmt *stmts[WFS_QUERY_COUNT];
	uint64_t commits; /* transactions that changed something */
	int wal_pages;    /* in the log since it was last moved to the database file */
	int bound_pages;  /* of the log: the next transaction moves it first; see WFS_DB_LOG_BOUND */
	uint64_t uses;    /* of the handle: seen by the thread sanitizer, which does not look into SQLite */
	bool in_transaction;
	bool is_broken;   /* the transaction cannot be committed */
	bool has_failed;  /* SQLite had an error since the lock was taken */
	bool holds_view;  /* WFS_Q_VIEW is at its first row */
	/* constant after open */
	bool read_only;
	bool was_clean; /* before this open: an orderly unmount was the last thing */
	char *path;     /* of weightfs.db */
	unsigned digest_bits; /* of digests that count: 128 but in tests of collisions */
	int wal_fd;     /* of weightfs.db-wal; -1 if read_only */
	void (*log)(void *ctx, const char *line);
	void *log_ctx;
	/* under sync_lock */
	pthread_mutex_t sync_lock;
	uint64_t synced; /* value of commits that is known to be durable */
	/* under no lock */
	atomic_uint waiting; /* threads that want the lock; see wfs_db_is_wanted */
	atomic_bool is_lost; /* the file was removed, or its log cannot be kept: transactions that write fail with EIO */
	atomic_bool log_failed; /* a sync has failed: the log is to be written again before it is relied on */
};

/* A change of the schema from version `to - 1` to `to`. */
struct wfs_db_migration {
	unsigned to;
	const char *sql;
};

/*
 * Open the database DIR/weightfs.db; with `create` make it if it is missing or empty. Reasons in *err:
 * not-a-store, store-version, store-damaged, io, as wfs_store_open says.
 */
int wfs_db_open(struct wfs_db *db, const char *dir, bool read_only, bool create,
	struct wfs_err *err);
void wfs_db_close(struct wfs_db *db);

/*
 * Bring a database from version `have` to the last of `steps`, each step in one
 * transaction with its new version number. -EPROTONOSUPPORT where no step
 * leads on. Used by open with the table of real migrations; by tests with others.
 */
int wfs_db_migrate(sqlite3 *handle, unsigned have, unsigned want,
	const struct wfs_db_migration *steps, size_t n, struct wfs_err *err);

/* Does another thread wait for the lock? Work in the background then ends its transaction soon. */
bool wfs_db_is_wanted(struct wfs_db *db);

/* Take the lock and begin a transaction that writes. On error nothing is held. */
int wfs_db_begin(struct wfs_db *db) WFS_WARN_UNUSED;
/* Take the lock to read one committed state. */
int wfs_db_begin_read(struct wfs_db *db) WFS_WARN_UNUSED;
/* The same, but -EBUSY instead of waiting for the lock. */
int wfs_db_try_begin_read(struct wfs_db *db) WFS_WARN_UNUSED;
/*
 * End what begin or begin_read began: commit if ret is 0 (or positive), else
 * roll back; release the lock. Returns ret, or the error of the commit.
 */
int wfs_db_end(struct wfs_db *db, int ret) WFS_WARN_UNUSED;

/*
 * A part of a transaction that can be undone alone: end keeps it if ret is 0 (or
 * positive), else undoes it, and returns ret. Where that cannot be done, wfs_db_end fails.
 */
int wfs_db_begin_part(struct wfs_db *db) WFS_WARN_UNUSED;
int wfs_db_end_part(struct wfs_db *db, int ret);

/*
 * Bind and run. `types` has one letter for each parameter:
 *   i  uint64_t or int64_t        o  uint64_t, 0 becomes NULL
 *   b  const void *, size_t       t  const char *, NULL becomes NULL
 * Blobs and texts must outlive the call (run) or the use of the row (first).
 * run:   to its end. 0 or -errno.
 * first: to the first row: 1 with *ret to read columns from, then
 *        wfs_db_next or wfs_db_done; 0 no row; -errno.
 * The transaction's lock must be held.
 */
int wfs_db_run(struct wfs_db *db, enum wfs_query q, const char *types, ...);
int wfs_db_first(struct wfs_db *db, enum wfs_query q, sqlite3_stmt **ret, const char *types, ...);
int wfs_db_next(struct wfs_db *db, sqlite3_stmt *stmt);
void wfs_db_done(sqlite3_stmt *stmt);

/* One number: 1 with *ret, 0 if there is no row (or NULL), or -errno. */
int wfs_db_number(struct wfs_db *db, enum wfs_query q, uint64_t *ret, const char *types, ...);

/* The numbers of all rows; the caller frees the list, which is NULL where there are none. */
int wfs_db_list(struct wfs_db *db, enum wfs_query q, uint64_t **ret, size_t *ret_n,
	const char *types, ...);

uint64_t wfs_db_insert_id(struct wfs_db *db);
int wfs_db_changes(struct wfs_db *db);

/* -errno for an SQLite result code; logs what should not happen. Under the lock, as the text is the connection's. */
int wfs_db_error(struct wfs_db *db, int code, const char *what);

/*
 * What was committed before this call survives a power cut. Takes no database lock while it waits,
 * but where the disk failed: the log is then written again, once it was seen to be right. Where that
 * fails, too: -EIO, and nothing can be written until the store is opened anew.
 */
int wfs_db_sync(struct wfs_db *db);

/* How many were committed until now; and to wait for these alone. */
uint64_t wfs_db_commits(struct wfs_db *db);
int wfs_db_sync_to(struct wfs_db *db, uint64_t commits);

/*
 * Move the log into the database file. Everything committed becomes durable; call
 * wfs_store_sync first, so that less of the waiting is under the lock. Returns at once if the log is shorter than `min_pages`
 * pages. Waits for the disk under the database lock, for no other reader.
 */
int wfs_db_checkpoint(struct wfs_db *db, int min_pages);

/*
 * For a quiet moment: return some unused pages of the database to the disk, and
 * empty the log as checkpoint does. 1: there are more, or another process reads
 * the log: try again; 0: done; -errno.
 */
int wfs_db_tidy(struct wfs_db *db);

#endif
