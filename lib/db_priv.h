/* db_priv.h - what lib/db.c and lib/db_log.c share. */
#ifndef WFS_DB_PRIV_H
#define WFS_DB_PRIV_H

#include "lib/db.h"

#define WFS_DB_BUSY_MS 10000 /* for a lock that a process at the end of its life still holds */

/* The first number of a query; as it was if there is no row. An SQLite result code. */
int wfs_db_pragma(sqlite3 *handle, const char *sql, int64_t *ret);

/* The log cannot be moved while this connection holds a view of it. Under the lock. */
void wfs_db_drop_view(struct wfs_db *db);

/* All of the log is in the database file. Under the lock. */
void wfs_db_log_is_moved(struct wfs_db *db);

/* SQLite's own sync, of the log or of the database file, may have failed with this code. Under the lock. */
void wfs_db_note_failed_sync(struct wfs_db *db, int code);

#endif
