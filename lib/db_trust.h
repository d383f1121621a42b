/*
 * db_trust.h - a database that somebody else may have made.
 *
 * A schema is code: triggers, views, constraints and the expressions of indexes
 * run when a table is used, and a rollback journal names a file that SQLite
 * removes. None of that is believed here; values are checked by who reads them.
 */
#ifndef WFS_DB_TRUST_H
#define WFS_DB_TRUST_H

#include <sqlite3.h>

#include "lib/base.h"
#include "lib/err.h"

/*
 * Before the database at `path` is opened: it and what SQLite keeps beside it are
 * regular files or missing, and no journal names another file. 0, or -EUCLEAN with
 * the reason store-damaged.
 */
int wfs_db_trust_files(const char *path, struct wfs_err *err);

/* Of a connection that has read nothing yet: limits, and nothing of the schema that runs. An SQLite code. */
int wfs_db_trust_nothing(sqlite3 *handle);

/*
 * Does the schema say nothing but what `known`, the text of ours, does in some order: no name of a
 * function, a module or a column that is not in it? Made before anything else is
 * prepared. 0; -EUCLEAN with the reason store-damaged; -ENOMEM; where it cannot be read, the code of SQLite.
 */
int wfs_db_trust_schema(sqlite3 *handle, const char *known, struct wfs_err *err);

#endif
