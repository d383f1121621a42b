/* What lies in the store's directory and beside it, made and changed without the store's knowledge. */
#include "tests/faults/world_priv.h"

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <inttypes.h>
#include <setjmp.h>
#include <sqlite3.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "lib/datafile.h"
#include "tests/unit/support.h"

void world_format(char ret[PATH_ROOM], const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	if (vsnprintf(ret, PATH_ROOM, fmt, ap) >= PATH_ROOM)
		abort();
	va_end(ap);
}

/* ---- directories ---- */

static const char *copy_from, *copy_to;

static int copy_one(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
	WFS_AUTO_FREE char *to = NULL, *bytes = NULL;
	size_t len;

	(void)ftw;
	if (asprintf(&to, "%s%s", copy_to, path + strlen(copy_from)) < 0)
		abort();
	if (type == FTW_D)
		return mkdir(to, st->st_mode & 0777);
	/* What SQLite shares between processes dies with them. */
	if (!S_ISREG(st->st_mode) || (strlen(path) > 4 && strcmp(path + strlen(path) - 4, "-shm") == 0))
		return 0;
	bytes = wfs_test_read(path, &len);
	wfs_test_write(to, bytes, len);
	/* What was flushed has been told by its time. */
	return utimensat(AT_FDCWD, to, (const struct timespec[]){ st->st_atim, st->st_mtim }, 0);
}

void world_copy_tree(const char *from, const char *to)
{
	if (access(to, F_OK) == 0)
		wfs_test_rmdir(to);
	copy_from = from;
	copy_to = to;
	if (access(from, F_OK) == 0 && nftw(from, copy_one, 16, FTW_PHYS) != 0)
		fail_msg("%s cannot be copied", from);
}

void world_side_path(const struct world *w, const char *name, char ret[PATH_ROOM])
{
	world_format(ret, "%s/%s", w->side, name);
}

void world_side_mkdir(const struct world *w, const char *name)
{
	char path[PATH_ROOM];

	world_side_path(w, name, path);
	if ((mkdir(w->side, 0700) != 0 && errno != EEXIST) || (mkdir(path, 0700) != 0 && errno != EEXIST))
		fail_msg("%s: %s", path, strerror(errno));
}

void world_data_path(const struct world *w, uint64_t data_file, char ret[PATH_ROOM])
{
	char name[WFS_DATAFILE_PATH_SIZE];

	wfs_datafile_path(data_file, name);
	world_format(ret, "%s/%s", w->path, name);
}

/* ---- SQL ---- */

static sqlite3 *open_database(struct world *w)
{
	char path[PATH_ROOM];
	sqlite3 *db;

	world_format(path, "%s/weightfs.db", w->path);
	if (sqlite3_open(path, &db) != SQLITE_OK ||
		sqlite3_exec(db, "PRAGMA ignore_check_constraints = ON", NULL, NULL, NULL) != SQLITE_OK)
		fail_msg("%s: %s", path, sqlite3_errmsg(db));
	return db;
}

void world_sql(struct world *w, const char *sql)
{
	sqlite3 *db = open_database(w);

	if (sqlite3_exec(db, sql, NULL, NULL, NULL) != SQLITE_OK)
		fail_msg("%s: %s", sql, sqlite3_errmsg(db));
	sqlite3_close(db);
}

uint64_t world_ask(struct world *w, const char *sql)
{
	sqlite3 *db = open_database(w);
	sqlite3_stmt *stmt = NULL;
	uint64_t ret;

	if (sqlite3_prepare_v2(db, sql, -1, &stmt, NULL) != SQLITE_OK || sqlite3_step(stmt) != SQLITE_ROW)
		fail_msg("%s: %s", sql, sqlite3_errmsg(db));
	ret = (uint64_t)sqlite3_column_int64(stmt, 0);
	sqlite3_finalize(stmt);
	sqlite3_close(db);
	return ret;
}
