/* db_uri.h - how SQLite is told that nobody writes a database. */
#ifndef WFS_DB_URI_H
#define WFS_DB_URI_H

/*
 * "file:PATH?immutable=1", PATH escaped as a URI needs it, for sqlite3_open_v2 with
 * SQLITE_OPEN_URI. The caller frees it; NULL: out of memory.
 */
char *wfs_db_immutable_uri(const char *path);

#endif
