/* lib/db.h: the log of the database: to the disk, and into the database file. */
#include <errno.h>
#include <stdio.h>
#include <unistd.h>

#include "lib/crash.h"
#include "lib/db_priv.h"
#include "lib/wal_file.h"

/* Under the lock: SQLite's own sync, of the log or of the database file, has failed. */
void wfs_db_note_failed_sync(struct wfs_db *db, int code)
{
	if (code == SQLITE_IOERR_FSYNC || code == SQLITE_IOERR_DIR_FSYNC)
		atomic_store(&db->log_failed, true);
}

/*
 * A sync of the log has failed, and the kernel may have dropped what it did not write
 * (docs/decisions/0020). Under sync_lock: write all of it again, if it can still be read; else
 * nothing can be written any more.
 */
static int write_log_again(struct wfs_db *db)
{
	int ret;

	pthread_mutex_lock(&db->lock);
	ret = atomic_load(&db->is_lost) ? -EIO : wfs_wal_rewrite(db->wal_fd, db->wal_pages);
	if (ret == 0) {
		db->synced = db->commits;
		atomic_store(&db->log_failed, false);
	} else if (!atomic_exchange(&db->is_lost, true) && db->log) {
		db->log(db->log_ctx, "the database's log cannot be written to the disk: nothing can be "
			"changed until the store is mounted again");
	}
	pthread_mutex_unlock(&db->lock);
	return ret ? -EIO : 0;
}

uint64_t wfs_db_commits(struct wfs_db *db)
{
	uint64_t commits;

	pthread_mutex_lock(&db->lock);
	commits = db->commits;
	pthread_mutex_unlock(&db->lock);
	return commits;
}

int wfs_db_sync(struct wfs_db *db)
{
	return wfs_db_sync_to(db, wfs_db_commits(db));
}

int wfs_db_sync_to(struct wfs_db *db, uint64_t commits)
{
	int ret = 0;

	pthread_mutex_lock(&db->sync_lock);
	if (db->synced < commits && !atomic_load(&db->log_failed)) {
		uint64_t now = wfs_db_commits(db);

		if (fdatasync(db->wal_fd) == 0)
			db->synced = now;
		else
			atomic_store(&db->log_failed, true);
	}
	if (atomic_load(&db->log_failed))
		ret = write_log_again(db);
	pthread_mutex_unlock(&db->sync_lock);
	return ret;
}

void wfs_db_log_is_moved(struct wfs_db *db)
{
	db->wal_pages = 0;
	db->bound_pages = WFS_DB_LOG_BOUND;
}

int wfs_db_checkpoint(struct wfs_db *db, int min_pages)
{
	int code = SQLITE_OK, pages, moved, ret;

	wfs_crash_at("checkpoint-before");
	/* What is read of it may be wrong: not into the database. wfs_db_sync sees to it. */
	if (atomic_load(&db->log_failed))
		return -EIO;
	pthread_mutex_lock(&db->lock);
	if (db->wal_pages >= min_pages) {
		wfs_db_drop_view(db);
		code = sqlite3_wal_checkpoint_v2(db->handle, NULL, SQLITE_CHECKPOINT_PASSIVE, &pages,
			&moved);
		if (code == SQLITE_OK && moved == pages)
			wfs_db_log_is_moved(db);
		wfs_db_note_failed_sync(db, code);
	}
	/* A reader in another process may hold it up; the next call tries again. */
	ret = code == SQLITE_OK || code == SQLITE_BUSY ? 0 : wfs_db_error(db, code, "checkpoint");
	pthread_mutex_unlock(&db->lock);
	return ret;
}

#define SPARE_PAGES 32 /* unused pages that may stay */
#define VACUUM_PAGES 512 /* returned at once: 2 MiB, a few milliseconds under the lock */

/* Move the log, and make its file empty. SQLITE_BUSY: a reader in another process is in the way. */
static int empty_log(struct wfs_db *db)
{
	int code;

	sqlite3_busy_timeout(db->handle, 0);
	code = sqlite3_wal_checkpoint_v2(db->handle, NULL, SQLITE_CHECKPOINT_TRUNCATE, NULL, NULL);
	sqlite3_busy_timeout(db->handle, WFS_DB_BUSY_MS);
	if (code == SQLITE_OK)
		wfs_db_log_is_moved(db);
	wfs_db_note_failed_sync(db, code);
	return code;
}

int wfs_db_tidy(struct wfs_db *db)
{
	int64_t unused = 0;
	int code, ret;

	if (atomic_load(&db->log_failed))
		return -EIO;
	pthread_mutex_lock(&db->lock);
	wfs_db_drop_view(db);
	code = wfs_db_pragma(db->handle, "PRAGMA freelist_count", &unused);
	if (code == SQLITE_OK && unused > SPARE_PAGES) {
		char sql[64];

		snprintf(sql, sizeof(sql), "PRAGMA incremental_vacuum(%d)", VACUUM_PAGES);
		code = sqlite3_exec(db->handle, sql, NULL, NULL, NULL);
		unused -= VACUUM_PAGES;
	}
	if (code == SQLITE_OK && unused <= SPARE_PAGES)
		code = empty_log(db);
	ret = code == SQLITE_OK ? unused > SPARE_PAGES
	      : code == SQLITE_BUSY ? 1 : wfs_db_error(db, code, "tidying up");
	pthread_mutex_unlock(&db->lock);
	return ret;
}
