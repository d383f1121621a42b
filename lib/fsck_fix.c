#include "lib/fsck_fix.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <sys/stat.h>

#include "lib/array.h"
#include "lib/format.h"
#include "lib/owner.h"

#define COPY_SIZE (1 << 20)

/* ---- what is said ---- */

void wfs_fix_say(struct wfs_fix *fix, const char *kind, const char *where, const char *text)
{
	struct wfs_fsck_finding done = { .kind = kind, .where = where, .text = text };

	fix->actions++;
	if (fix->notes)
		fprintf(fix->notes, "%s: %s: %s\n", kind, where, text);
	if (fix->fn)
		fix->fn(fix->ctx, &done);
}

void wfs_fix_sayf(struct wfs_fix *fix, const char *kind, const char *noun, int64_t id,
	const char *fmt, ...)
{
	char where[64], text[900];
	va_list ap;

	snprintf(where, sizeof(where), "%s %lld", noun, (long long)id);
	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	wfs_fix_say(fix, kind, where, text);
}

int wfs_fix_failed(struct wfs_fix *fix, const char *what)
{
	int ret = wfs_fsck_errno(sqlite3_errcode(fix->run->db));

	if (fix->run->failed) /* and this comes of it */
		return fix->run->failed;
	return wfs_err_set(fix->run->err, ret ? ret : -EUCLEAN, ret ? "io" : "repair-failed",
		WFS_NO_OFFSET, "%s: repair, %.100s: %s", fix->run->path, what,
		sqlite3_errmsg(fix->run->db));
}

/* ---- statements ---- */

static int bind_all(sqlite3_stmt *stmt, const char *types, va_list *ap)
{
	int code = SQLITE_OK;

	for (int i = 0; types[i] && code == SQLITE_OK; i++) {
		const void *p;
		int64_t v;

		switch (types[i]) {
		case 'b':
			p = va_arg(*ap, const void *);
			code = sqlite3_bind_blob64(stmt, i + 1, p ? p : "", va_arg(*ap, size_t),
				SQLITE_STATIC);
			break;
		case 't':
			code = sqlite3_bind_text(stmt, i + 1, va_arg(*ap, const char *), -1,
				SQLITE_STATIC);
			break;
		default:
			v = va_arg(*ap, int64_t);
			code = types[i] == 'o' && v == 0 ? sqlite3_bind_null(stmt, i + 1)
							 : sqlite3_bind_int64(stmt, i + 1, v);
		}
	}
	return code;
}

static int prepare(struct wfs_fix *fix, const char *sql, sqlite3_stmt **ret, const char *types,
	va_list *ap)
{
	int code = sqlite3_prepare_v2(fix->run->db, sql, -1, ret, NULL);

	if (code == SQLITE_OK)
		code = bind_all(*ret, types, ap);
	return code == SQLITE_OK ? 0 : wfs_fix_failed(fix, sql);
}

int wfs_fix_exec(struct wfs_fix *fix, const char *sql, const char *types, ...)
{
	sqlite3_stmt *stmt = NULL;
	int code = SQLITE_ROW;
	va_list ap;
	int ret;

	va_start(ap, types);
	ret = prepare(fix, sql, &stmt, types, &ap);
	va_end(ap);
	while (ret == 0 && code == SQLITE_ROW)
		code = sqlite3_step(stmt);
	if (ret == 0 && code != SQLITE_DONE)
		ret = wfs_fix_failed(fix, sql);
	sqlite3_finalize(stmt);
	return ret;
}

int wfs_fix_number(struct wfs_fix *fix, const char *sql, int64_t *ret_number, const char *types, ...)
{
	sqlite3_stmt *stmt = NULL;
	va_list ap;
	int code, ret;

	va_start(ap, types);
	ret = prepare(fix, sql, &stmt, types, &ap);
	va_end(ap);
	if (ret == 0) {
		code = sqlite3_step(stmt);
		if (code == SQLITE_ROW) {
			ret = sqlite3_column_type(stmt, 0) != SQLITE_NULL;
			*ret_number = sqlite3_column_int64(stmt, 0);
		} else if (code != SQLITE_DONE) {
			ret = wfs_fix_failed(fix, sql);
		}
	}
	sqlite3_finalize(stmt);
	return ret;
}

int64_t wfs_fix_insert_id(struct wfs_fix *fix)
{
	return sqlite3_last_insert_rowid(fix->run->db);
}

static int add_row(struct wfs_fix_rows *rows, size_t *room, sqlite3_stmt *stmt)
{
	int columns = sqlite3_column_count(stmt);

	if (WFS_ARRAY_ROOM(rows->list, rows->n, *room))
		return -ENOMEM;
	rows->list[rows->n++] = (struct wfs_fix_row){
		.a = sqlite3_column_int64(stmt, 0),
		.b = columns > 1 ? sqlite3_column_int64(stmt, 1) : 0,
		.c = columns > 2 ? sqlite3_column_int64(stmt, 2) : 0,
	};
	return 0;
}

int wfs_fix_rows(struct wfs_fix *fix, const char *sql, struct wfs_fix_rows *rows, const char *types,
	...)
{
	sqlite3_stmt *stmt = NULL;
	size_t room = 0;
	va_list ap;
	int code = SQLITE_DONE, ret;

	*rows = (struct wfs_fix_rows){ NULL, 0 };
	va_start(ap, types);
	ret = prepare(fix, sql, &stmt, types, &ap);
	va_end(ap);
	while (ret == 0 && (code = sqlite3_step(stmt)) == SQLITE_ROW)
		ret = add_row(rows, &room, stmt);
	if (ret == 0 && code != SQLITE_DONE)
		ret = wfs_fix_failed(fix, sql);
	sqlite3_finalize(stmt);
	if (ret) {
		free(rows->list);
		*rows = (struct wfs_fix_rows){ NULL, 0 };
	}
	return ret;
}

/* ---- tables of repairs ---- */

static int run_step(struct wfs_fix *fix, const struct wfs_fix_step *step)
{
	struct wfs_fsck_line where, text;
	sqlite3_stmt *stmt = NULL;
	bool any = false;
	int code;

	if (sqlite3_prepare_v2(fix->run->db, step->sql, -1, &stmt, NULL) != SQLITE_OK)
		return wfs_fix_failed(fix, step->sql);
	while ((code = sqlite3_step(stmt)) == SQLITE_ROW) {
		any = true;
		wfs_fsck_fill(fix->run, stmt, step->where, &where);
		wfs_fsck_fill(fix->run, stmt, step->text, &text);
		wfs_fix_say(fix, step->kind, where.text, text.text);
	}
	sqlite3_finalize(stmt);
	if (code != SQLITE_DONE)
		return wfs_fix_failed(fix, step->sql);
	return any && step->change ? wfs_fix_exec(fix, step->change, "") : 0;
}

int wfs_fix_table(struct wfs_fix *fix, const struct wfs_fix_step *steps, size_t n)
{
	int ret = 0;

	for (size_t i = 0; i < n && ret == 0; i++)
		if (steps[i].when != WFS_FSCK_SETTLED || fix->settled)
			ret = run_step(fix, &steps[i]);
	return ret;
}

static int fix_column(struct wfs_fix *fix, const struct wfs_fix_column *c)
{
	WFS_AUTO_FREE char *sql = wfs_format("SELECT %s, %s, typeof(%s) FROM %s WHERE NOT (%s)", c->id,
		c->column, c->column, c->table, c->good);
	WFS_AUTO_FREE char *where = wfs_format("%s %%1", c->table);
	WFS_AUTO_FREE char *text = wfs_format("%s was %%2 (%%3), and is set to what the rest says", c->column);
	WFS_AUTO_FREE char *change = wfs_format("UPDATE OR IGNORE %s SET %s = %s WHERE NOT (%s)", c->table,
		c->column, c->value, c->good);
	const struct wfs_fix_step step = {
		.kind = "column-type", .sql = sql, .where = where, .text = text, .change = change,
	};

	return sql && where && text && change ? run_step(fix, &step) : -ENOMEM;
}

int wfs_fix_columns(struct wfs_fix *fix, const struct wfs_fix_column *columns, size_t n)
{
	int ret = 0;

	for (size_t i = 0; i < n && ret == 0; i++)
		ret = fix_column(fix, &columns[i]);
	return ret;
}

/* ---- data files ---- */

int wfs_fix_new_data_file(struct wfs_fix *fix, int64_t state, int64_t *ret_id)
{
	char path[WFS_FSCK_PATH_SIZE];
	struct stat st;
	int64_t id = 0;
	int ret = wfs_fix_number(fix, "SELECT max(coalesce((SELECT max(seq) FROM sqlite_sequence"
		" WHERE name = 'data_file'), 0), coalesce((SELECT max(id) FROM data_file), 0))",
		&id, "");

	if (ret < 0)
		return ret;
	do
		wfs_fsck_data_path(++id, path);
	while (fix->run->data_fd >= 0 &&
		fstatat(fix->run->data_fd, path, &st, AT_SYMLINK_NOFOLLOW) == 0);
	*ret_id = id;
	if (fix->dry_run && !fix->first_new)
		fix->first_new = id;
	return wfs_fix_exec(fix, "INSERT INTO data_file (id, state, holes) VALUES (?, ?, 0)", "ii",
		id, state);
}

static bool stat_file(struct wfs_fix *fix, int64_t id, struct stat *st)
{
	char path[WFS_FSCK_PATH_SIZE];

	wfs_fsck_data_path(id, path);
	if (fix->run->data_fd < 0)
		return false;
	if (fstatat(fix->run->data_fd, path, st, AT_SYMLINK_NOFOLLOW) == 0)
		return S_ISREG(st->st_mode);
	wfs_fsck_could_not(fix->run, id, errno);
	return false;
}

int64_t wfs_fix_file_size(struct wfs_fix *fix, int64_t id)
{
	struct stat st;

	if (fix->first_new && id >= fix->first_new)
		return 0;
	return stat_file(fix, id, &st) ? (int64_t)st.st_size : -1;
}

bool wfs_fix_holds_bytes(struct wfs_fix *fix, int64_t id)
{
	WFS_AUTO_CLOSE int fd = wfs_fix_open(fix, id);

	/* Small files may have no block of their own (inline data): ask for data. */
	return fd >= 0 && lseek(fd, 0, SEEK_DATA) >= 0;
}

int wfs_fix_open(struct wfs_fix *fix, int64_t id)
{
	char path[WFS_FSCK_PATH_SIZE];
	struct stat st;
	int fd;

	if (!stat_file(fix, id, &st))
		return -ENOENT;
	wfs_fsck_data_path(id, path);
	fd = openat(fix->run->data_fd, path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
	if (fd < 0)
		wfs_fsck_could_not(fix->run, id, errno);
	return fd;
}

int wfs_fix_mkdir(int dir_fd, const char *name)
{
	if (mkdirat(dir_fd, name, 0700) != 0)
		return errno == EEXIST ? 0 : -errno;
	wfs_owner_inherit(dir_fd, name);
	return 0;
}

static int create_file(struct wfs_fix *fix, int64_t id)
{
	char path[WFS_FSCK_PATH_SIZE];
	int fd, ret;

	wfs_fsck_data_path(id, path);
	path[2] = '\0';
	ret = wfs_fix_mkdir(fix->run->data_fd, path);
	if (ret)
		return ret;
	path[2] = '/';
	fd = openat(fix->run->data_fd, path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (fd < 0)
		return -errno;
	wfs_owner_inherit(fix->run->data_fd, path);
	return fd;
}

/* Holes stay holes. */
static int copy_range(int in, int out, off_t from, off_t end)
{
	WFS_AUTO_FREE char *buf = malloc(COPY_SIZE);
	off_t base = from, at = from;

	if (!buf)
		return -ENOMEM;
	if (ftruncate(out, end - base) != 0)
		/* cppcheck-suppress memleak; WFS_AUTO_FREE */
		return -errno;
	while (at < end) {
		off_t data = lseek(in, at, SEEK_DATA);
		ssize_t n;

		if (data < 0 && errno == ENXIO)
			break;
		at = data < 0 ? at : data;
		if (at >= end)
			break;
		n = pread(in, buf, (size_t)WFS_MIN(end - at, COPY_SIZE), at);
		if (n < 0)
			return -errno;
		if (n == 0)
			break;
		if (pwrite(out, buf, (size_t)n, at - base) != n)
			return errno ? -errno : -EIO;
		at += n;
	}
	return fsync(out) != 0 ? -errno : 0;
}

int wfs_fix_copy(struct wfs_fix *fix, int64_t from, int64_t offset, int64_t length, int64_t state,
	int64_t *ret_id)
{
	WFS_AUTO_CLOSE int in = wfs_fix_open(fix, from);
	WFS_AUTO_CLOSE int out = -1;
	int ret = wfs_fix_new_data_file(fix, state, ret_id);

	if (ret || fix->dry_run || in < 0)
		return ret ? ret : fix->run->failed;
	out = create_file(fix, *ret_id);
	ret = out < 0 ? out : copy_range(in, out, offset,
		length < 0 ? (off_t)wfs_fix_file_size(fix, from) : offset + length);
	return ret ? wfs_err_errno(fix->run->err, ret, "%s: a copy of data file %lld",
			     fix->run->path, (long long)from)
		   : 0;
}

int wfs_fix_hash(struct wfs_fix *fix, int64_t id, int64_t offset, int64_t length,
	struct wfs_digest *ret)
{
	WFS_AUTO_CLOSE int fd = wfs_fix_open(fix, id);
	WFS_AUTO_FREE char *buf = malloc(COPY_SIZE);
	struct wfs_hasher hasher;
	int64_t size = wfs_fix_file_size(fix, id);

	if (!buf)
		wfs_fsck_could_not(fix->run, id, ENOMEM);
	if (!buf || fd < 0 || offset < 0 || length < 1 || offset > size || length > size - offset)
		/* cppcheck-suppress memleak; WFS_AUTO_FREE */
		return 0;
	wfs_hasher_init(&hasher, 128);
	while (length > 0) {
		ssize_t n = pread(fd, buf, (size_t)WFS_MIN(length, COPY_SIZE), offset);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			wfs_fsck_could_not(fix->run, id, errno);
		if (n <= 0)
			return 0;
		wfs_hasher_update(&hasher, buf, (size_t)n);
		offset += n;
		length -= n;
	}
	*ret = wfs_hasher_final(&hasher);
	return 1;
}

/* ---- damage ---- */

int wfs_fix_damage_inode(struct wfs_fix *fix, int64_t ino, const char *reason, const char *detail)
{
	struct wfs_fsck_line text = { .len = 0 };
	int64_t known = 0;
	int ret = wfs_fix_number(fix, "SELECT verdict = 5 AND reason IS NOT NULL FROM inode"
		" WHERE ino = ?", &known, "i", ino);

	if (ret <= 0 || known)
		return WFS_MIN(ret, 0);
	wfs_fsck_add_path(fix->run, &text, ino);
	wfs_fsck_add(&text, " is damaged and cannot be read any more: %s", detail);
	wfs_fix_sayf(fix, reason, "inode", ino, "%s", text.text);
	fix->has_notes = true;
	return wfs_fix_exec(fix, "UPDATE inode SET verdict = 5, reason = ?, detail = ? WHERE ino = ?",
		"tti", reason, detail, ino);
}

int wfs_fix_damage(struct wfs_fix *fix, int64_t manifest, const char *reason, const char *detail)
{
	struct wfs_fix_rows inodes;
	int ret = wfs_fix_rows(fix, "SELECT ino FROM inode WHERE manifest = ?", &inodes, "i", manifest);

	for (size_t i = 0; i < inodes.n && ret == 0; i++)
		ret = wfs_fix_damage_inode(fix, inodes.list[i].a, reason, detail);
	free(inodes.list);
	return ret;
}
