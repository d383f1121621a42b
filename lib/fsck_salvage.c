/*
 * fsck_salvage.c - a fresh database with every row of a damaged one that can be read.
 *
 * Indexes are made anew and not looked at. A table is read upwards until a page
 * is damaged, then downwards from the other end; what lies between is halved, and
 * each half read the same way, so that of a damaged page only its own rows are missing.
 * What rows say is taken over as it is: repairing that comes afterwards.
 */
#include "lib/fsck_fix.h"

#include <errno.h>
#include <string.h>

#include "lib/db.h"
#include "lib/format.h"

#include "schema_sql.h"

#define MAX_COLUMNS 18
#define MAX_PROBES 20000        /* halvings of damaged ranges of one table */
#define LENGTH_LIMIT (16 << 20) /* bytes of one value */

struct table {
	const char *name;
	const char *order; /* columns of the primary key, the first an integer; NULL: read as it comes */
	bool has_rowid;
	const char *columns[MAX_COLUMNS + 1];
	const char *needed; /* a letter for each column: '-' may be NULL, 'i' 0 instead, 'b' no bytes, 't' no text */
};

static const struct table tables[] = {
	{ "meta", NULL, false, { "key", "value" }, "t-" },
	{ "data_file", "id", true, { "id", "state", "holes" }, "iii" },
	{ "object", "id", true,
		{ "id", "digest", "ordinal", "length", "refs", "data_file", "offset" }, "ibiii--" },
	{ "object_bytes", "object", true, { "object", "bytes" }, "ib" },
	{ "manifest", "id", true,
		{ "id", "digest", "size", "objects", "refs", "whole", "shared", "solid" }, "i-iii-ii" },
	{ "manifest_object", "manifest, seq", false, { "manifest", "seq", "object" }, "iii" },
	{ "inode", "ino", true,
		{ "ino", "mode", "uid", "gid", "nlink", "rdev", "size", "blocks", "atime_ns",
			"mtime_ns", "ctime_ns", "btime_ns", "target", "manifest", "data_file",
			"verdict", "reason", "detail" },
		"iiiiiiiiiiii---i--" },
	{ "dirent", "id", true, { "id", "parent", "name", "ino" }, "iibi" },
	{ "xattr", "ino, name", false, { "ino", "name", "value" }, "ibb" },
	{ "damage", "object", true, { "object", "reason", "found_ns" }, "iii" },
	{ "tensor", "dir, variant, name", false,
		{ "dir", "variant", "name", "ino", "form", "dtype", "shape", "start", "length" },
		"ibb-ittii" },
};

struct salvage {
	struct wfs_fix *fix;
	sqlite3 *from, *to;
	const struct table *table;
	sqlite3_stmt *insert;
	sqlite3_stmt *up, *down; /* rows of the old table, both ways; NULL: there is no such table */
	uint64_t rows, lost, clashes;
};

static int to_failed(struct salvage *s, const char *what)
{
	int ret = wfs_fsck_errno(sqlite3_errcode(s->to));

	return wfs_err_set(s->fix->run->err, ret ? ret : -EUCLEAN, ret ? "io" : "repair-failed",
		WFS_NO_OFFSET, "%s: the new database, %s: %s", s->fix->run->path, what,
		sqlite3_errmsg(s->to));
}

/*
 * What is no fault of the old database's pages: memory, or what SQLite needs beside them. Nothing is
 * lost then; it can be tried again. -errno; 0: the pages are damaged, or cannot be read.
 */
static int from_failed(struct salvage *s, int code)
{
	int ret = wfs_fsck_errno(code);

	if (ret == 0 || code == SQLITE_IOERR_READ || code == SQLITE_IOERR_SHORT_READ)
		return 0;
	return wfs_err_set(s->fix->run->err, ret, "io", WFS_NO_OFFSET, "%s: the damaged database: %s",
		s->fix->run->path, sqlite3_errstr(code));
}

/* ---- rows into the new database ---- */

static int bind_row(struct salvage *s, sqlite3_stmt *row)
{
	const char *needed = s->table->needed;
	int code = SQLITE_OK;

	for (int i = 0; needed[i] && code == SQLITE_OK; i++) {
		if (sqlite3_column_type(row, i) != SQLITE_NULL || needed[i] == '-')
			code = sqlite3_bind_value(s->insert, i + 1, sqlite3_column_value(row, i));
		else if (needed[i] == 'b')
			code = sqlite3_bind_zeroblob(s->insert, i + 1, 0);
		else if (needed[i] == 't')
			code = sqlite3_bind_text(s->insert, i + 1, "", 0, SQLITE_STATIC);
		else
			code = sqlite3_bind_int64(s->insert, i + 1, 0);
	}
	return code == SQLITE_OK ? 0 : to_failed(s, s->table->name);
}

/* Two rows with one key where one may be: the second one gets another. 1, 0: it cannot, or -errno. */
static int give_other_key(struct salvage *s, sqlite3_stmt *row)
{
	char name[300];

	if (strcmp(s->table->name, "object") == 0) {
		sqlite3_bind_int64(s->insert, 3, sqlite3_column_int64(row, 0) + (INT64_C(1) << 40));
		return 1;
	}
	if (strcmp(s->table->name, "manifest") == 0) {
		sqlite3_bind_null(s->insert, 6);
		sqlite3_bind_int64(s->insert, 7, 0);
		return 1;
	}
	if (strcmp(s->table->name, "dirent") != 0)
		return 0;
	snprintf(name, sizeof(name), "%.*s~%lld", WFS_MIN(sqlite3_column_bytes(row, 2), 230),
		sqlite3_column_bytes(row, 2) ? (const char *)sqlite3_column_blob(row, 2) : "",
		(long long)sqlite3_column_int64(row, 0));
	if (sqlite3_bind_blob(s->insert, 3, name, (int)strlen(name), SQLITE_TRANSIENT) != SQLITE_OK)
		return to_failed(s, s->table->name);
	return 1;
}

/* 1, 0 or -errno. */
static int has_row(struct salvage *s, int64_t id)
{
	char sql[100];
	sqlite3_stmt *stmt = NULL;
	int code;

	snprintf(sql, sizeof(sql), "SELECT 1 FROM %s WHERE rowid = ?", s->table->name);
	code = sqlite3_prepare_v2(s->to, sql, -1, &stmt, NULL);
	if (code == SQLITE_OK) {
		sqlite3_bind_int64(stmt, 1, id);
		code = sqlite3_step(stmt);
	}
	sqlite3_finalize(stmt);
	if (code != SQLITE_ROW && code != SQLITE_DONE)
		return to_failed(s, s->table->name);
	return code == SQLITE_ROW;
}

static int put_row(struct salvage *s, sqlite3_stmt *row)
{
	int code, ret = bind_row(s, row);

	if (ret)
		return ret;
	code = sqlite3_step(s->insert);
	sqlite3_reset(s->insert);
	if (code != SQLITE_DONE)
		return to_failed(s, s->table->name);
	if (sqlite3_changes(s->to) > 0) {
		s->rows++;
		return 0;
	}
	/* Read before, from the other side of a damaged page. */
	ret = s->table->has_rowid ? has_row(s, sqlite3_column_int64(row, 0)) : 1;
	if (ret)
		return WFS_MIN(ret, 0);
	ret = give_other_key(s, row);
	if (ret <= 0)
		return ret;
	code = sqlite3_step(s->insert);
	sqlite3_reset(s->insert);
	if (code != SQLITE_DONE)
		return to_failed(s, s->table->name);
	s->rows += sqlite3_changes(s->to) > 0;
	s->clashes++;
	return 0;
}

/* ---- rows of the old one ---- */

struct range {
	int64_t low, high; /* of the first column of the key, both in it */
};

#define COLUMNS_SIZE 600

/* A column that is missing there is NULL here. */
static int select_columns(struct salvage *s, char columns[COLUMNS_SIZE])
{
	size_t len = 0;

	for (size_t i = 0; s->table->columns[i]; i++) {
		sqlite3_stmt *probe = NULL;
		char test[100];
		int code, ret;

		snprintf(test, sizeof(test), "SELECT \"%s\" FROM \"%s\" LIMIT 0", s->table->columns[i],
			s->table->name);
		code = sqlite3_prepare_v2(s->from, test, -1, &probe, NULL);
		sqlite3_finalize(probe);
		ret = code == SQLITE_OK ? 0 : from_failed(s, code);
		if (ret)
			return ret;
		len += (size_t)snprintf(columns + len, COLUMNS_SIZE - len, "%s%s", i ? ", " : "",
			code == SQLITE_OK ? s->table->columns[i] : "NULL");
	}
	return 0;
}

static char *select_sql(struct salvage *s, const char *columns, bool down)
{
	const char *key = s->table->columns[0];
	char order[120] = "";
	size_t len = 0;

	if (!s->table->order)
		return wfs_format("SELECT %s FROM %s", columns, s->table->name);
	for (const char *p = s->table->order; *p && len + 8 < sizeof(order); p++) {
		if (*p == ',')
			len += (size_t)snprintf(order + len, sizeof(order) - len, down ? " DESC" : "");
		order[len++] = *p;
		order[len] = '\0';
	}
	return wfs_format("SELECT %s FROM %s %s WHERE %s BETWEEN ? AND ? ORDER BY %s%s", columns,
		s->table->name, s->table->has_rowid ? "NOT INDEXED" : "", key, order, down ? " DESC" : "");
}

/* *ret is NULL where there is no such table. */
static int prepare_way(struct salvage *s, bool down, sqlite3_stmt **ret)
{
	char columns[COLUMNS_SIZE] = "";
	int code, err = select_columns(s, columns);
	WFS_AUTO_FREE char *sql = err ? NULL : select_sql(s, columns, down);

	*ret = NULL;
	if (!sql)
		return err ? err : -ENOMEM;
	code = sqlite3_prepare_v2(s->from, sql, -1, ret, NULL);
	return code == SQLITE_OK ? 0 : from_failed(s, code);
}

/* One way through a range. 1: all of it was read; 0: up to *ret_last, if any (then *ret_any). */
static int read_one_way(struct salvage *s, const struct range *range, bool down, int64_t *ret_last,
	bool *ret_any)
{
	sqlite3_stmt *row = down ? s->down : s->up;
	int code = SQLITE_DONE, ret = 0;

	*ret_any = false;
	if (s->table->order) {
		sqlite3_bind_int64(row, 1, range->low);
		sqlite3_bind_int64(row, 2, range->high);
	}
	while (ret == 0 && (code = sqlite3_step(row)) == SQLITE_ROW) {
		int64_t key = sqlite3_column_int64(row, 0);

		/* Pages that lead back to where we were: damage, too. */
		if (s->table->order && *ret_any && s->table->has_rowid &&
			(down ? key >= *ret_last : key <= *ret_last)) {
			code = SQLITE_CORRUPT;
			break;
		}
		*ret_last = key;
		*ret_any = true;
		ret = put_row(s, row);
	}
	sqlite3_reset(row);
	if (ret == 0 && code != SQLITE_DONE)
		ret = from_failed(s, code);
	return ret ? ret : code == SQLITE_DONE;
}

/* Both ways; what is left between in *left. 1: nothing. */
static int read_both_ways(struct salvage *s, const struct range *range, struct range *left)
{
	int64_t last = 0;
	bool any = false;
	int ret = read_one_way(s, range, false, &last, &any);

	*left = *range;
	if (ret != 0 || !s->table->order)
		return ret;
	/* Of a key with several rows some may be missing still. */
	if (any)
		left->low = s->table->has_rowid ? last + 1 : last;
	if (left->low > left->high)
		return 1;
	ret = read_one_way(s, left, true, &last, &any);
	if (ret == 0 && any)
		left->high = s->table->has_rowid ? last - 1 : last;
	return ret;
}

/* Breadth first: of what a damaged page hides the large parts are looked for before the small ones. */
static int read_ranges(struct salvage *s)
{
	WFS_AUTO_FREE struct range *queue = calloc(2 * MAX_PROBES + 3, sizeof(*queue));
	struct range left;
	size_t n = 1;
	int ret = 0;

	if (!queue)
		return -ENOMEM;
	queue[0] = (struct range){ INT64_MIN, INT64_MAX };
	for (size_t at = 0; at < n && ret >= 0; at++) {
		int64_t middle;

		ret = read_both_ways(s, &queue[at], &left);
		if (ret != 0 || left.low > left.high)
			continue;
		if (left.low == left.high || at >= MAX_PROBES) {
			s->lost++;
			continue;
		}
		middle = left.low / 2 + left.high / 2;
		middle = WFS_MIN(WFS_MAX(middle, left.low), left.high - 1);
		queue[n++] = (struct range){ left.low, middle };
		queue[n++] = (struct range){ middle + 1, left.high };
	}
	return WFS_MIN(ret, 0);
}

static int copy_meta(struct salvage *s)
{
	struct range all = { 0, 0 };
	int64_t last = 0;
	bool any;
	int ret = read_one_way(s, &all, false, &last, &any);

	s->lost += ret == 0;
	return WFS_MIN(ret, 0);
}

static int copy_table(struct salvage *s, const struct table *table)
{
	WFS_AUTO_FREE char *sql = NULL;
	char marks[2 * MAX_COLUMNS + 1] = "", columns[600] = "";
	size_t len = 0, n = 0;
	char where[64], text[200];
	int ret = 0;

	s->table = table;
	s->rows = s->lost = s->clashes = 0;
	s->up = s->down = s->insert = NULL;
	for (; table->columns[n]; n++) {
		len += (size_t)snprintf(columns + len, sizeof(columns) - len, "%s%s", n ? ", " : "",
			table->columns[n]);
		memcpy(marks + 2 * n, n ? ",?" : " ?", 3);
	}
	sql = wfs_format("INSERT OR IGNORE INTO %s (%s) VALUES (%s)", table->name, columns, marks);
	if (!sql)
		return -ENOMEM;
	if (sqlite3_prepare_v2(s->to, sql, -1, &s->insert, NULL) != SQLITE_OK)
		return to_failed(s, table->name);
	ret = prepare_way(s, false, &s->up);
	if (ret == 0 && table->order)
		ret = prepare_way(s, true, &s->down);
	if (ret == 0 && (!s->up || (table->order && !s->down)))
		s->lost = 1;
	else if (ret == 0)
		ret = table->order ? read_ranges(s) : copy_meta(s);
	sqlite3_finalize(s->insert);
	sqlite3_finalize(s->up);
	sqlite3_finalize(s->down);
	if (ret)
		return ret;
	snprintf(where, sizeof(where), "table %s", table->name);
	snprintf(text, sizeof(text), "%llu rows were read%s%s", (unsigned long long)s->rows,
		s->lost ? "; others are on damaged pages and lost" : "",
		s->clashes ? "; some had one key and were given another" : "");
	wfs_fix_say(s->fix, "database", where, text);
	s->fix->rows_were_lost = s->fix->rows_were_lost || s->lost > 0;
	return 0;
}

/* Ids that were given out and given back must not come again. */
static int copy_sequence(struct salvage *s)
{
	sqlite3_stmt *row = NULL, *set = NULL;
	int code, ret = 0;

	if (sqlite3_prepare_v2(s->to, "UPDATE sqlite_sequence SET seq = max(seq, ?2) WHERE name = ?1", -1,
		    &set, NULL) != SQLITE_OK)
		return to_failed(s, "ids");
	code = sqlite3_prepare_v2(s->from, "SELECT name, seq FROM sqlite_sequence WHERE typeof(seq) ="
		" 'integer' AND seq BETWEEN 0 AND " WFS_FSCK_MAX_SEQUENCE, -1, &row, NULL);
	while (code == SQLITE_OK && ret == 0 && (code = sqlite3_step(row)) == SQLITE_ROW) {
		code = sqlite3_bind_value(set, 1, sqlite3_column_value(row, 0));
		if (code == SQLITE_OK)
			code = sqlite3_bind_value(set, 2, sqlite3_column_value(row, 1));
		if (code != SQLITE_OK || sqlite3_step(set) != SQLITE_DONE)
			ret = to_failed(s, "ids");
		sqlite3_reset(set);
	}
	if (ret == 0 && code != SQLITE_DONE)
		ret = from_failed(s, code);
	sqlite3_finalize(set);
	sqlite3_finalize(row);
	return ret;
}

static int create(struct salvage *s, const char *path)
{
	char sql[160];
	int code = sqlite3_open_v2(path, &s->to,
		SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_NOMUTEX, NULL);

	if (code == SQLITE_OK)
		code = sqlite3_exec(s->to, "PRAGMA auto_vacuum = INCREMENTAL; PRAGMA journal_mode = OFF;"
			"PRAGMA synchronous = OFF; BEGIN", NULL, NULL, NULL);
	if (code == SQLITE_OK)
		code = sqlite3_exec(s->to, wfs_schema_sql, NULL, NULL, NULL);
	snprintf(sql, sizeof(sql), "PRAGMA application_id = %d; PRAGMA user_version = %d;"
		"PRAGMA ignore_check_constraints = ON", WFS_DB_APPLICATION_ID, WFS_DB_VERSION);
	if (code == SQLITE_OK)
		code = sqlite3_exec(s->to, sql, NULL, NULL, NULL);
	return code == SQLITE_OK ? 0 : to_failed(s, "its schema");
}

static int open_damaged(struct salvage *s, const char *path)
{
	int code = sqlite3_open_v2(path, &s->from, SQLITE_OPEN_READWRITE | SQLITE_OPEN_NOMUTEX |
		SQLITE_OPEN_EXRESCODE, NULL);

	if (code != SQLITE_OK)
		return from_failed(s, code);
	sqlite3_limit(s->from, SQLITE_LIMIT_LENGTH, LENGTH_LIMIT);
	code = sqlite3_exec(s->from, "PRAGMA query_only = ON; PRAGMA trusted_schema = OFF;"
		"PRAGMA mmap_size = 0; PRAGMA cell_size_check = ON", NULL, NULL, NULL);
	/* What is damaged is so again at each table, which is where it is told. */
	return code == SQLITE_OK ? 0 : from_failed(s, code);
}

int wfs_fsck_salvage(struct wfs_fix *fix, const char *from, const char *to)
{
	struct salvage s = { .fix = fix };
	int ret = create(&s, to);

	if (ret == 0)
		ret = open_damaged(&s, from);
	for (size_t i = 0; i < WFS_ARRAY_SIZE(tables) && ret == 0; i++)
		ret = copy_table(&s, &tables[i]);
	if (ret == 0)
		ret = copy_sequence(&s);
	if (ret == 0 && sqlite3_exec(s.to, "COMMIT", NULL, NULL, NULL) != SQLITE_OK)
		ret = to_failed(&s, "commit");
	sqlite3_close(s.from);
	sqlite3_close(s.to);
	return ret;
}
