#include "lib/fsck_check.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "lib/array.h"

/* ---- lines and findings ---- */

void wfs_fsck_add(struct wfs_fsck_line *line, const char *fmt, ...)
{
	size_t left = sizeof(line->text) - line->len;
	va_list ap;
	int n;

	va_start(ap, fmt);
	n = vsnprintf(line->text + line->len, left, fmt, ap);
	va_end(ap);
	if (n > 0)
		line->len += WFS_MIN((size_t)n, left - 1);
}

void wfs_fsck_add_bytes(struct wfs_fsck_line *line, const void *bytes, size_t len)
{
	const unsigned char *p = bytes;

	for (size_t i = 0; i < len && line->len + 5 < sizeof(line->text); i++) {
		bool plain = p[i] >= 0x20 && p[i] < 0x7f && p[i] != '\\';

		wfs_fsck_add(line, plain ? "%c" : "\\x%02x", p[i]);
	}
}

void wfs_fsck_report_at(struct wfs_fsck_run *run, const char *kind, const char *where,
	const char *text)
{
	struct wfs_fsck_finding finding = { .kind = kind, .where = where, .text = text };

	if (run->failed)
		return; /* it may be no finding at all */
	run->summary.findings++;
	if (run->fn)
		run->fn(run->ctx, &finding);
}

void wfs_fsck_report(struct wfs_fsck_run *run, const char *kind, const char *noun, int64_t id,
	const char *fmt, ...)
{
	char where[64], text[400];
	va_list ap;

	snprintf(where, sizeof(where), "%s %lld", noun, (long long)id);
	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	wfs_fsck_report_at(run, kind, where, text);
}

/* Without memory, or by an error of the disk, SQLite has undone the whole transaction: the run has failed. */
static bool is_row(struct wfs_fsck_run *run, int code)
{
	int ret = wfs_fsck_errno(code);

	if (ret && !run->failed)
		run->failed = wfs_err_set(run->err, ret, "io", WFS_NO_OFFSET, "%s: a path: %s", run->path,
			sqlite3_errmsg(run->db));
	return code == SQLITE_ROW;
}

/* 1 with the parent and the name in front of buf[*at], 0 if there is no (more) name. */
static int prepend_name(struct wfs_fsck_run *run, int64_t *ino, char *buf, size_t *at)
{
	const void *name;
	size_t len;

	sqlite3_reset(run->name_of);
	sqlite3_bind_int64(run->name_of, 1, *ino);
	if (!is_row(run, sqlite3_step(run->name_of)))
		return 0;
	name = sqlite3_column_blob(run->name_of, 1);
	len = (size_t)sqlite3_column_bytes(run->name_of, 1);
	if (len + 1 > *at)
		return 0;
	*at -= len;
	if (len > 0)
		memcpy(buf + *at, name, len);
	buf[--*at] = '/';
	*ino = sqlite3_column_int64(run->name_of, 0);
	return 1;
}

void wfs_fsck_add_path(struct wfs_fsck_run *run, struct wfs_fsck_line *line, int64_t ino)
{
	char buf[400];
	size_t at = sizeof(buf);
	int64_t start = ino;

	if (ino == WFS_FSCK_ROOT) {
		wfs_fsck_add(line, "/");
		return;
	}
	if (!run->name_of)
		is_row(run, sqlite3_prepare_v2(run->db, "SELECT parent, name FROM dirent WHERE ino = ? LIMIT 1",
			-1, &run->name_of, NULL));
	/* Each round takes a byte of buf, so that any cycle ends. */
	while (run->name_of && ino != WFS_FSCK_ROOT && prepend_name(run, &ino, buf, &at))
		if (ino == start)
			break;
	if (run->name_of)
		sqlite3_reset(run->name_of);
	if (ino != WFS_FSCK_ROOT)
		wfs_fsck_add(line, "?");
	wfs_fsck_add_bytes(line, buf + at, sizeof(buf) - at);
}

/* ---- queries ---- */

void wfs_fsck_begin(struct wfs_fsck_run *run, const char *doing)
{
	run->doing = doing;
	run->spent = 0;
}

int wfs_fsck_count_steps(void *ctx)
{
	struct wfs_fsck_run *run = ctx;

	run->spent += WFS_FSCK_STEPS_UNIT;
	return run->spent > run->budget;
}

void wfs_fsck_could_not(struct wfs_fsck_run *run, int64_t data_file, int error)
{
	switch (error) {
	case ENOENT:
	case ENOTDIR:
	case ELOOP:
	case ENXIO:
	case EIO:
	case EBADF:  /* there is no data/ */
	case EINVAL: /* an offset that no file has */
		return;
	default:
		if (!run->failed)
			run->failed = wfs_err_errno(run->err, -error, "%s: data file %lld", run->path,
				(long long)data_file);
	}
}

int wfs_fsck_errno(int code)
{
	if (code == SQLITE_IOERR_CORRUPTFS)
		return 0;
	switch (code & 0xff) {
	case SQLITE_NOMEM:
		return -ENOMEM;
	case SQLITE_FULL:
		return -ENOSPC;
	case SQLITE_BUSY:
	case SQLITE_LOCKED:
		return -EBUSY;
	case SQLITE_IOERR:
	case SQLITE_CANTOPEN:
	case SQLITE_PERM:
	case SQLITE_PROTOCOL:
	case SQLITE_READONLY: /* what could not be opened to be written SQLite opens to be read */
		return -EIO;
	default:
		return 0;
	}
}

static int query_failed(struct wfs_fsck_run *run, int code)
{
	int ret = wfs_fsck_errno(code);
	struct wfs_fsck_line where = { .len = 0 }, text = { .len = 0 };

	if (run->failed) /* and this comes of it */
		return run->failed;
	if (ret)
		return wfs_err_set(run->err, ret, "io", WFS_NO_OFFSET, "%s: check %s: %s",
			run->path, run->doing, sqlite3_errmsg(run->db));
	wfs_fsck_add(&where, "check %s", run->doing);
	wfs_fsck_add(&text, "the check could not be finished: ");
	if ((code & 0xff) == SQLITE_INTERRUPT)
		wfs_fsck_add(&text, "the database has more rows than fit in its file");
	else
		wfs_fsck_add_bytes(&text, sqlite3_errmsg(run->db),
			strlen(sqlite3_errmsg(run->db)));
	wfs_fsck_report_at(run, "database", where.text, text.text);
	return 0;
}

int wfs_fsck_query(struct wfs_fsck_run *run, const char *sql, sqlite3_stmt **ret)
{
	int code;

	*ret = NULL;
	code = sqlite3_prepare_v2(run->db, sql, -1, ret, NULL);
	return code == SQLITE_OK ? 0 : query_failed(run, code);
}

int wfs_fsck_step(struct wfs_fsck_run *run, sqlite3_stmt *stmt)
{
	int code = stmt ? sqlite3_step(stmt) : SQLITE_DONE;

	if (code == SQLITE_ROW)
		return 1;
	return code == SQLITE_DONE ? 0 : query_failed(run, code);
}

static void add_column(struct wfs_fsck_line *line, sqlite3_stmt *stmt, int col)
{
	size_t len;

	switch (sqlite3_column_type(stmt, col)) {
	case SQLITE_NULL:
		wfs_fsck_add(line, "NULL");
		break;
	case SQLITE_INTEGER:
		wfs_fsck_add(line, "%lld", (long long)sqlite3_column_int64(stmt, col));
		break;
	case SQLITE_FLOAT:
		wfs_fsck_add(line, "%g", sqlite3_column_double(stmt, col));
		break;
	default: {
		const void *bytes = sqlite3_column_blob(stmt, col);

		len = (size_t)sqlite3_column_bytes(stmt, col);
		wfs_fsck_add_bytes(line, bytes, WFS_MIN(len, 255));
	}
	}
}

void wfs_fsck_fill(struct wfs_fsck_run *run, sqlite3_stmt *stmt, const char *template,
	struct wfs_fsck_line *line)
{
	line->len = 0;
	line->text[0] = '\0';
	for (const char *p = template; *p; p++) {
		bool is_column = p[0] == '%' || p[0] == '@';

		if (!is_column || p[1] < '1' || p[1] > '9') {
			wfs_fsck_add(line, "%c", *p);
			continue;
		}
		if (p[0] == '%')
			add_column(line, stmt, p[1] - '1');
		else
			wfs_fsck_add_path(run, line, sqlite3_column_int64(stmt, p[1] - '1'));
		p++;
	}
}

static int run_check(struct wfs_fsck_run *run, const struct wfs_fsck_check *check)
{
	struct wfs_fsck_line where, text;
	sqlite3_stmt *stmt;
	int ret;

	wfs_fsck_begin(run, check->kind);
	ret = wfs_fsck_query(run, check->sql, &stmt);
	while (ret >= 0 && (ret = wfs_fsck_step(run, stmt)) > 0) {
		if (check->when == WFS_FSCK_OBJECT &&
			wfs_fsck_is_excused(run, sqlite3_column_int64(stmt, 0)))
			continue;
		wfs_fsck_fill(run, stmt, check->where, &where);
		wfs_fsck_fill(run, stmt, check->text, &text);
		wfs_fsck_report_at(run, check->kind, where.text, text.text);
	}
	sqlite3_finalize(stmt);
	return ret;
}

int wfs_fsck_table(struct wfs_fsck_run *run, const struct wfs_fsck_check *checks, size_t n)
{
	bool settled = run->clean && !run->in_use;
	int ret = 0;

	for (size_t i = 0; i < n && ret == 0; i++)
		if (checks[i].when != WFS_FSCK_SETTLED || settled)
			ret = run_check(run, &checks[i]);
	return ret;
}

/* ---- what is known to be damaged ---- */

static int compare_ids(const void *a, const void *b)
{
	int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;

	return x < y ? -1 : x > y;
}

bool wfs_fsck_is_excused(const struct wfs_fsck_run *run, int64_t object)
{
	return run->n_excused > 0 && bsearch(&object, run->excused, run->n_excused,
		sizeof(object), compare_ids);
}

/* In order: grouped by the object's number. */
static const char damaged_objects[] =
	"SELECT c.object FROM manifest_object c JOIN object o ON o.id = c.object"
	" WHERE c.manifest IN (SELECT i.manifest FROM inode i WHERE i.verdict = 5"
	" AND i.reason IS NOT NULL AND i.manifest IS NOT NULL AND NOT EXISTS"
	" (SELECT 1 FROM inode j WHERE j.manifest = i.manifest AND j.verdict <> 5))"
	" GROUP BY c.object HAVING sum(1) = o.refs ORDER BY c.object";

int wfs_fsck_find_excused(struct wfs_fsck_run *run)
{
	size_t room = 0;
	sqlite3_stmt *stmt;
	int ret;

	wfs_fsck_begin(run, "damaged");
	free(run->excused);
	run->excused = NULL;
	run->n_excused = 0;
	ret = wfs_fsck_query(run, damaged_objects, &stmt);
	while (ret >= 0 && (ret = wfs_fsck_step(run, stmt)) > 0) {
		if (WFS_ARRAY_ROOM(run->excused, run->n_excused, room)) {
			ret = -ENOMEM;
			break;
		}
		run->excused[run->n_excused++] = sqlite3_column_int64(stmt, 0);
	}
	sqlite3_finalize(stmt);
	return ret;
}
