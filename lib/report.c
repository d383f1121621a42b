/* Figures and reports for weightfs status: the second half of lib/store.h. */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#include "lib/array.h"
#include "lib/damage.h"
#include "lib/datafile_state.h"
#include "lib/store_priv.h"

static int count_inodes(struct wfs_store *s, struct wfs_store_stats *st)
{
	sqlite3_stmt *row;
	uint64_t *const fields[] = { &st->files, &st->directories, &st->dirty, &st->incomplete,
		&st->wrong, &st->damaged, &st->warned, &st->logical_bytes };
	int found = wfs_db_first(&s->db, WFS_Q_STAT_INODES, &row, "");

	if (found <= 0)
		return found ? found : -EUCLEAN;
	for (size_t i = 0; i < WFS_ARRAY_SIZE(fields); i++)
		*fields[i] = (uint64_t)sqlite3_column_int64(row, (int)i);
	wfs_db_done(row);
	st->sealed = st->files - st->dirty;
	return 0;
}

/* What is in staging files counts once for each name, and is stored once. */
static int count_dirty(struct wfs_store *s, struct wfs_store_stats *st)
{
	sqlite3_stmt *row;
	int more;

	for (more = wfs_db_first(&s->db, WFS_Q_STAT_DIRTY, &row, ""); more > 0;
		more = wfs_db_next(&s->db, row)) {
		uint64_t nlink = (uint64_t)sqlite3_column_int64(row, 2);
		struct stat file;

		if (wfs_datafile_stat(&s->datafiles, (uint64_t)sqlite3_column_int64(row, 1),
			    &file) != 0)
			continue;
		st->logical_bytes += nlink * (uint64_t)file.st_size;
		st->dirty_bytes += (uint64_t)file.st_size;
	}
	st->stored_bytes += st->dirty_bytes;
	return more;
}

static int count_objects(struct wfs_store *s, struct wfs_store_stats *st)
{
	sqlite3_stmt *row;
	int found = wfs_db_first(&s->db, WFS_Q_STAT_OBJECTS, &row, "");

	if (found <= 0)
		return found ? found : -EUCLEAN;
	st->objects = (uint64_t)sqlite3_column_int64(row, 0);
	st->stored_bytes = (uint64_t)sqlite3_column_int64(row, 1);
	wfs_db_done(row);
	found = wfs_db_number(&s->db, WFS_Q_STAT_MANIFESTS, &st->manifests, "");
	return found < 0 ? found : 0;
}

/* Disk blocks of a pack that no object lives in, where ranges died that are not punched out. */
static uint64_t dead_of(sqlite3_stmt *row, uint64_t held)
{
	uint64_t live = (uint64_t)sqlite3_column_int64(row, 2);

	return sqlite3_column_type(row, 2) != SQLITE_NULL && held > live ? held - live : 0;
}

static int count_data_files(struct wfs_store *s, struct wfs_store_stats *st)
{
	sqlite3_stmt *row;
	uint64_t dead = 0, holes = 0, cannot_punch = 0;
	int more = wfs_db_number(&s->db, WFS_Q_META_GET, &cannot_punch, "t", WFS_META_CANNOT_PUNCH);

	if (more < 0)
		return more;
	for (more = wfs_db_first(&s->db, WFS_Q_STAT_DATA_EACH, &row, ""); more > 0;
		more = wfs_db_next(&s->db, row)) {
		struct stat file;
		uint64_t held;

		if (wfs_datafile_stat(&s->datafiles, (uint64_t)sqlite3_column_int64(row, 0),
			    &file) != 0)
			continue; /* given back; its row goes next */
		if (file.st_size == 0 && sqlite3_column_int(row, 1) == WFS_DATA_DOOMED)
			continue; /* given back, and kept for the next file: lib/spare.h */
		st->data_files++;
		held = (uint64_t)file.st_blocks * 512;
		st->disk_bytes += held - WFS_MIN(held, (uint64_t)sqlite3_column_int64(row, 3));
		if (sqlite3_column_int(row, 1) >= WFS_DATA_DOOMED)
			st->pending_bytes += held;
		else
			holes += dead_of(row, held);
	}
	/* What waits in vain. */
	if (cannot_punch)
		st->held_bytes = holes;
	else
		st->pending_bytes += holes;
	if (more == 0)
		more = wfs_db_number(&s->db, WFS_Q_STAT_DEAD, &dead, "");
	st->pending_bytes += dead;
	return more < 0 ? more : 0;
}

static void count_database(struct wfs_store *s, struct wfs_store_stats *st)
{
	static const char *const names[] = { "weightfs.db", "weightfs.db-wal", "weightfs.db-shm" };
	struct stat file;

	for (size_t i = 0; i < WFS_ARRAY_SIZE(names); i++)
		if (fstatat(s->dir_fd, names[i], &file, AT_SYMLINK_NOFOLLOW) == 0)
			st->disk_bytes += (uint64_t)file.st_blocks * 512;
}

/* Files with content that is damaged, beside those that are so as a whole. */
static int count_damage(struct wfs_store *s, struct wfs_store_stats *st)
{
	uint64_t files = 0;
	int found = wfs_db_number(&s->db, WFS_Q_DAMAGE_COUNT, &st->damaged_objects, "");

	if (found >= 0 && st->damaged_objects)
		found = wfs_db_number(&s->db, WFS_Q_DAMAGE_FILES, &files, "");
	st->damaged += files;
	return WFS_MIN(found, 0);
}

static int count_whole_copies(struct wfs_store *s, struct wfs_store_stats *st)
{
	sqlite3_stmt *row;
	int found = wfs_db_first(&s->db, WFS_Q_WHOLE_SUM, &row, "");

	if (found <= 0)
		return found;
	st->shared_bytes = (uint64_t)sqlite3_column_int64(row, 0);
	/* In a store that somebody else made it may be anything. */
	st->copied_bytes = (uint64_t)WFS_MAX(sqlite3_column_int64(row, 1), 0);
	wfs_db_done(row);
	return 0;
}

static int stats_locked(struct wfs_store *s, struct wfs_store_stats *st)
{
	int ret = count_inodes(s, st);

	if (!ret)
		ret = count_objects(s, st);
	if (!ret)
		ret = count_dirty(s, st);
	if (!ret)
		ret = count_whole_copies(s, st);
	if (!ret)
		ret = count_damage(s, st);
	return ret ? ret : count_data_files(s, st);
}

int wfs_store_stats(struct wfs_store *s, struct wfs_store_stats *ret, struct wfs_err *err)
{
	struct wfs_store_stats st = { .format_version = WFS_DB_VERSION };
	int e = wfs_db_begin_read(&s->db);

	if (!e)
		e = wfs_db_end(&s->db, stats_locked(s, &st));
	if (e)
		return wfs_err_errno(err, e, "the figures of %s", s->path);
	count_database(s, &st);
	*ret = st;
	return 0;
}

/* ---- reports ---- */

/* Rows are copied first: fn runs under no lock, and asks for paths. */
struct row {
	uint64_t ino, size, data_file;
	enum wfs_verdict verdict;
	char *reason, *detail; /* or NULL */
};

struct rows {
	struct row *list;
	size_t n, room;
};

static int copy_text(sqlite3_stmt *stmt, int col, char **ret)
{
	const unsigned char *text = sqlite3_column_text(stmt, col);

	*ret = text ? strdup((const char *)text) : NULL;
	return text && !*ret ? -ENOMEM : 0;
}

static int add_row(struct rows *rows, sqlite3_stmt *stmt)
{
	struct row *r;
	int err;

	if (WFS_ARRAY_ROOM(rows->list, rows->n, rows->room))
		return -ENOMEM;
	r = &rows->list[rows->n++];
	*r = (struct row){
		.ino = (uint64_t)sqlite3_column_int64(stmt, 0),
		.size = (uint64_t)sqlite3_column_int64(stmt, 1),
		.data_file = (uint64_t)sqlite3_column_int64(stmt, 2),
		.verdict = (enum wfs_verdict)sqlite3_column_int(stmt, 3),
	};
	err = copy_text(stmt, 4, &r->reason);
	return err ? err : copy_text(stmt, 5, &r->detail);
}

static int read_rows(struct wfs_store *s, struct rows *rows)
{
	sqlite3_stmt *stmt;
	int more;

	for (more = wfs_db_first(&s->db, WFS_Q_STAT_REPORT, &stmt, ""); more > 0;
		more = wfs_db_next(&s->db, stmt)) {
		int err = add_row(rows, stmt);

		if (err) {
			wfs_db_done(stmt);
			return err;
		}
	}
	return more;
}

static int report_row(struct wfs_store *s, const struct row *r,
	int (*fn)(void *ctx, const struct wfs_store_report *report), void *ctx)
{
	WFS_AUTO_FREE char *path = NULL;
	struct wfs_store_report report;
	struct stat file;
	int err = wfs_name_path(s, r->ino, &path);

	if (err)
		return err == -ENOENT ? 0 : err;
	report = (struct wfs_store_report){ .path = path, .ino = r->ino, .size = r->size,
		.state = r->data_file ? "dirty" : "sealed", .verdict = wfs_verdict_name(r->verdict),
		.reason = r->reason, .detail = r->detail };
	if (r->data_file && wfs_datafile_stat(&s->datafiles, r->data_file, &file) == 0)
		report.size = (uint64_t)file.st_size;
	return fn(ctx, &report);
}

/* ---- of damaged content ---- */

/* What is damaged goes before what the gate said. */
static int add_damage(void *ctx, uint64_t ino, const char *reason, const char *text)
{
	struct rows *rows = ctx;
	struct row *r = NULL;

	for (size_t i = 0; i < rows->n && !r; i++)
		if (rows->list[i].ino == ino)
			r = &rows->list[i];
	if (!r) {
		if (WFS_ARRAY_ROOM(rows->list, rows->n, rows->room))
			return -ENOMEM;
		r = &rows->list[rows->n++];
		*r = (struct row){ .ino = ino };
	}
	free(r->reason);
	free(r->detail);
	r->verdict = WFS_VERDICT_DAMAGED;
	r->reason = strdup(reason);
	r->detail = strdup(text);
	return r->reason && r->detail ? 0 : -ENOMEM;
}

static int by_ino(const void *a, const void *b)
{
	const struct row *x = a, *y = b;

	return x->ino < y->ino ? -1 : x->ino > y->ino;
}

static int add_damaged(struct wfs_store *s, struct rows *rows)
{
	struct wfs_attr a;
	int ret = wfs_damage_each_file(s, add_damage, rows);

	for (size_t i = 0; i < rows->n && ret == 0; i++) {
		if (rows->list[i].verdict != WFS_VERDICT_DAMAGED || rows->list[i].size)
			continue;
		if (wfs_name_getattr(s, rows->list[i].ino, &a) == 0)
			rows->list[i].size = a.size;
	}
	if (rows->n)
		qsort(rows->list, rows->n, sizeof(*rows->list), by_ino);
	return ret;
}

int wfs_store_each_report(struct wfs_store *s,
	int (*fn)(void *ctx, const struct wfs_store_report *report), void *ctx,
	struct wfs_err *err)
{
	struct rows rows = { NULL, 0, 0 };
	int ret = wfs_db_begin_read(&s->db);

	if (!ret)
		ret = wfs_db_end(&s->db, read_rows(s, &rows));
	if (!ret)
		ret = add_damaged(s, &rows);
	if (ret)
		wfs_err_errno(err, ret, "the reports of %s", s->path);
	for (size_t i = 0; i < rows.n && ret == 0; i++)
		ret = report_row(s, &rows.list[i], fn, ctx);
	for (size_t i = 0; i < rows.n; i++) {
		free(rows.list[i].reason);
		free(rows.list[i].detail);
	}
	free(rows.list);
	return ret;
}
