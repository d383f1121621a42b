#include "lib/whole.h"

#include <errno.h>

#include "lib/array.h"
#include "lib/object.h"
#include "lib/share.h"

int wfs_whole_set(struct wfs_db *db, uint64_t manifest, uint64_t data_file, uint64_t shared)
{
	int ret = wfs_db_run(db, WFS_Q_WHOLE_SET, "iii", data_file, shared, manifest);

	if (ret)
		return ret;
	return wfs_db_changes(db) == 1 ? 0 : -ESTALE;
}

int wfs_whole_of(struct wfs_db *db, uint64_t data_file, uint64_t *ret_manifest)
{
	return wfs_db_number(db, WFS_Q_WHOLE_OF_FILE, ret_manifest, "i", data_file);
}

int wfs_whole_move(struct wfs_db *db, uint64_t from, uint64_t to)
{
	return wfs_db_run(db, WFS_Q_WHOLE_MOVE, "ii", to, from);
}

int wfs_whole_next(struct wfs_db *db, uint64_t *after, uint64_t *ret_manifest)
{
	uint64_t before = *after;
	sqlite3_stmt *row;
	int found = wfs_db_first(db, WFS_Q_WHOLE_NEXT, &row, "i", *after);

	if (found <= 0)
		return found;
	*ret_manifest = (uint64_t)sqlite3_column_int64(row, 0);
	*after = (uint64_t)sqlite3_column_int64(row, 1);
	wfs_db_done(row);
	return *after > before ? 1 : -EUCLEAN; /* else this would have no end */
}

/* ---- settling ---- */

/* A row of the manifest whose bytes live in a data file, but not where the whole copy has them. */
struct stray {
	uint64_t object, refs;
	uint64_t at; /* in the file, and so in the whole copy */
	uint64_t data_file, offset, length;
};

struct strays {
	uint64_t whole, shared, refs; /* of the manifest */
	uint64_t in_database;         /* rows whose bytes are there */
	struct stray *list;
	size_t n, room;
};

static int add_stray(struct strays *s, const struct stray *stray)
{
	if (WFS_ARRAY_ROOM(s->list, s->n, s->room))
		return -ENOMEM;
	s->list[s->n++] = *stray;
	return 0;
}

/* 1 with what the manifest's own row says, 0 where there is nothing to settle. */
static int read_manifest(struct wfs_db *db, uint64_t manifest, struct strays *s)
{
	sqlite3_stmt *row;
	int found = wfs_db_first(db, WFS_Q_MANIFEST_GET, &row, "i", manifest);

	if (found <= 0)
		return found;
	s->refs = (uint64_t)sqlite3_column_int64(row, 0);
	s->whole = (uint64_t)sqlite3_column_int64(row, 3);
	s->shared = (uint64_t)sqlite3_column_int64(row, 4);
	wfs_db_done(row);
	return s->whole != 0 && s->refs > 0;
}

static int read_strays(struct wfs_db *db, uint64_t manifest, struct strays *s)
{
	uint64_t at = 0;
	sqlite3_stmt *row;
	int more;

	s->n = 0;
	s->in_database = 0;
	for (more = wfs_db_first(db, WFS_Q_MANIFEST_LOAD, &row, "i", manifest); more > 0;
		more = wfs_db_next(db, row)) {
		struct stray stray = {
			.object = (uint64_t)sqlite3_column_int64(row, 0),
			.length = (uint64_t)sqlite3_column_int64(row, 1),
			.data_file = (uint64_t)sqlite3_column_int64(row, 2),
			.offset = (uint64_t)sqlite3_column_int64(row, 3),
			.refs = (uint64_t)sqlite3_column_int64(row, 5),
			.at = at,
		};
		bool is_home = stray.data_file == s->whole && stray.offset == at;
		int err = stray.data_file && !is_home ? add_stray(s, &stray) : 0;

		s->in_database += !stray.data_file;
		if (!err && wfs_add_overflows(at, stray.length, &at))
			err = -EUCLEAN;
		if (err) {
			wfs_db_done(row);
			return err;
		}
	}
	return more;
}

static int by_object(const void *a, const void *b)
{
	const struct stray *x = a, *y = b;

	if (x->object != y->object)
		return x->object < y->object ? -1 : 1;
	return x->at < y->at ? -1 : x->at > y->at;
}

static int by_file(const void *a, const void *b)
{
	const struct stray *x = a, *y = b;

	return x->data_file < y->data_file ? -1 : x->data_file > y->data_file;
}

/* Objects of nobody else move to the whole copy, and to the front of the list; *ret: how many. */
static int move_own(struct wfs_db *db, struct strays *s, size_t *ret)
{
	size_t moved = 0;
	uint64_t reason;
	int err = 0;

	if (s->n)
		qsort(s->list, s->n, sizeof(*s->list), by_object);
	for (size_t i = 0, next; i < s->n && err >= 0; i = next) {
		struct stray first = s->list[i];

		for (next = i + 1; next < s->n && s->list[next].object == first.object; next++)
			;
		if (first.refs != next - i || first.data_file == s->whole)
			continue;
		/* What is known of its place is not so of another. */
		err = wfs_db_number(db, WFS_Q_DAMAGE_OF, &reason, "i", first.object);
		if (err)
			continue;
		err = wfs_db_run(db, WFS_Q_OBJECT_PLACE, "iii", s->whole, first.at, first.object);
		s->list[moved++] = first;
	}
	*ret = moved;
	return WFS_MIN(err, 0);
}

/* Tell each data file that something moved out of once. */
static int leave_files(struct wfs_db *db, struct stray *moved, size_t n)
{
	int err = 0;

	qsort(moved, n, sizeof(*moved), by_file);
	for (size_t i = 0; i < n && !err; i++)
		if (i == 0 || moved[i].data_file != moved[i - 1].data_file)
			err = wfs_object_died_in(db, moved[i].data_file);
	return err;
}

/* Of what still lives elsewhere, the blocks stay shared. */
static int count_again(struct wfs_db *db, uint64_t manifest, struct strays *s, uint64_t block)
{
	uint64_t shared = 0;
	int err = read_strays(db, manifest, s);

	if (!err && s->n == 0 && s->in_database == 0)
		return wfs_db_run(db, WFS_Q_WHOLE_CLEAR, "i", manifest);
	for (size_t i = 0; i < s->n && !err; i++)
		shared += wfs_share_inner(block, s->list[i].at, s->list[i].offset,
			s->list[i].length, NULL);
	return err ? err : wfs_db_run(db, WFS_Q_WHOLE_SHARED, "ii", WFS_MIN(shared, s->shared),
		manifest);
}

int wfs_whole_settle(struct wfs_db *db, uint64_t manifest, uint64_t block)
{
	struct strays s = { 0 };
	size_t moved = 0;
	int ret = read_manifest(db, manifest, &s);

	if (ret > 0)
		ret = read_strays(db, manifest, &s);
	if (!ret)
		ret = move_own(db, &s, &moved);
	if (!ret && moved)
		ret = leave_files(db, s.list, moved);
	if (!ret && moved)
		ret = count_again(db, manifest, &s, block);
	free(s.list);
	return ret;
}
