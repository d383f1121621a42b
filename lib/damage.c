#include "lib/damage.h"

#include <errno.h>

#include "lib/array.h"
#include "lib/object.h"
#include "lib/store_priv.h"
#include "lib/whole.h"

const char *wfs_damage_reason_name(enum wfs_damage_reason reason)
{
	switch (reason) {
	case WFS_DAMAGE_NONE:
		return "sound";
	case WFS_DAMAGE_CHANGED:
		return "bytes-changed";
	case WFS_DAMAGE_ERROR:
		return "bytes-unreadable";
	case WFS_DAMAGE_MISSING:
		return "bytes-missing";
	}
	return "bytes-lost"; /* of a store that somebody else made */
}

const char *wfs_damage_reason_text(enum wfs_damage_reason reason)
{
	switch (reason) {
	case WFS_DAMAGE_NONE:
		return "they are what was stored";
	case WFS_DAMAGE_CHANGED:
		return "they are not what was stored";
	case WFS_DAMAGE_ERROR:
		return "the disk cannot read them";
	case WFS_DAMAGE_MISSING:
		return "they are not in the store any more";
	}
	return "they are lost";
}

bool wfs_damage_is_any(const struct wfs_store *s)
{
	return atomic_load(&s->damaged) > 0 || atomic_load(&s->damage_stale);
}

/* ---- the marks in memory ---- */

struct ranges {
	struct wfs_bad_range *list;
	size_t n, room;
	uint64_t marks;
};

static int add_range(struct ranges *r, sqlite3_stmt *row)
{
	r->marks++;
	if (sqlite3_column_type(row, 1) == SQLITE_NULL)
		return 0;
	if (WFS_ARRAY_ROOM(r->list, r->n, r->room))
		return -ENOMEM;
	r->list[r->n++] = (struct wfs_bad_range){
		.data_file = (uint64_t)sqlite3_column_int64(row, 1),
		.offset = (uint64_t)sqlite3_column_int64(row, 2),
		.length = (uint64_t)sqlite3_column_int64(row, 3),
	};
	return 0;
}

static int read_ranges(struct wfs_store *s, struct ranges *r)
{
	sqlite3_stmt *row;
	int more;

	for (more = wfs_db_first(&s->db, WFS_Q_DAMAGE_PLACES, &row, ""); more > 0;
		more = wfs_db_next(&s->db, row)) {
		int err = add_range(r, row);

		if (err) {
			wfs_db_done(row);
			return err;
		}
	}
	/* Within the transaction: of two threads the one that saw less is not the last. */
	if (more == 0) {
		wfs_datafiles_set_bad(&s->datafiles, r->list, r->n);
		r->list = NULL;
		atomic_store(&s->damaged, r->marks);
	}
	return more;
}

int wfs_damage_load(struct wfs_store *s)
{
	struct ranges r = { .list = NULL };
	int ret = wfs_db_begin_read(&s->db);

	if (ret == 0)
		ret = wfs_db_end(&s->db, read_ranges(s, &r));
	free(r.list);
	atomic_store(&s->damage_stale, ret != 0);
	return ret;
}

/* ---- other bytes ---- */

int wfs_damage_replace(struct wfs_db *db, uint64_t object, uint64_t data_file, uint64_t offset,
	const void *bytes, uint64_t length)
{
	uint64_t old;
	sqlite3_stmt *row;
	int ret = wfs_db_first(db, WFS_Q_DAMAGE_PLACE, &row, "i", object);

	if (ret <= 0)
		return ret ? ret : -ESTALE;
	old = (uint64_t)sqlite3_column_int64(row, 0);
	wfs_db_done(row);
	if (data_file) {
		ret = wfs_db_run(db, WFS_Q_OBJECT_PLACE, "iii", data_file, offset, object);
		if (ret == 0)
			ret = wfs_db_run(db, WFS_Q_BYTES_DELETE, "i", object);
	} else {
		ret = wfs_db_run(db, WFS_Q_OBJECT_TO_DATABASE, "i", object);
		if (ret == 0)
			ret = wfs_db_run(db, WFS_Q_BYTES_SET, "ib", object, bytes, (size_t)length);
	}
	if (ret == 0)
		ret = wfs_db_run(db, WFS_Q_DAMAGE_CLEAR, "i", object);
	/* Who has it does not have all of its bytes in one place any more. */
	if (ret == 0)
		ret = wfs_db_run(db, WFS_Q_DAMAGE_LEFT_SOLID, "i", object);
	return ret == 0 && old ? wfs_object_died_in(db, old) : ret;
}

/* ---- setting and clearing ---- */

/* The whole copy that was read is one still: the object moves there. 1 if it did. */
static int use_copy(struct wfs_db *db, const struct wfs_damage *d)
{
	uint64_t manifest;
	int ret = wfs_whole_of(db, d->good_file, &manifest);

	if (ret <= 0)
		return ret;
	ret = wfs_damage_replace(db, d->object, d->good_file, d->good_at, NULL, 0);
	return ret ? ret : 1;
}

/* 1: the object lives where it was found, 0: it does not, or is gone. */
static int is_there(struct wfs_db *db, const struct wfs_damage *d)
{
	sqlite3_stmt *row;
	bool same;
	int found = wfs_db_first(db, WFS_Q_DAMAGE_PLACE, &row, "i", d->object);

	if (found <= 0)
		return found;
	same = (uint64_t)sqlite3_column_int64(row, 0) == d->data_file &&
	       (!d->data_file || (uint64_t)sqlite3_column_int64(row, 1) == d->offset);
	wfs_db_done(row);
	return same;
}

static int set_one(struct wfs_db *db, const struct wfs_damage *d, size_t *ret_n)
{
	uint64_t had = WFS_DAMAGE_NONE;
	int ret = is_there(db, d);

	if (ret > 0 && d->good_file) {
		ret = use_copy(db, d);
		*ret_n += ret > 0;
		if (ret)
			return WFS_MIN(ret, 0);
		ret = 1;
	}
	if (ret > 0)
		ret = wfs_db_number(db, WFS_Q_DAMAGE_OF, &had, "i", d->object);
	else
		return ret;
	if (ret < 0 || had == (uint64_t)d->reason)
		return WFS_MIN(ret, 0);
	(*ret_n)++;
	if (d->reason == WFS_DAMAGE_NONE)
		return wfs_db_run(db, WFS_Q_DAMAGE_CLEAR, "i", d->object);
	return wfs_db_run(db, WFS_Q_DAMAGE_SET, "iii", d->object, (uint64_t)d->reason,
		wfs_now_ns());
}

static int set_all(struct wfs_store *s, const struct wfs_damage *list, size_t n, size_t *ret_n)
{
	int ret = 0;

	for (size_t i = 0; i < n && ret == 0; i++)
		ret = set_one(&s->db, &list[i], ret_n);
	return ret;
}

int wfs_damage_set(struct wfs_store *s, const struct wfs_damage *list, size_t n, size_t *ret_n)
{
	int ret;

	*ret_n = 0;
	if (s->db.read_only)
		return -EROFS;
	ret = wfs_db_begin(&s->db);
	if (ret == 0)
		ret = wfs_db_end(&s->db, set_all(s, list, n, ret_n));
	for (size_t i = 0; i < n && ret == 0; i++)
		if (list[i].reason == WFS_DAMAGE_NONE)
			wfs_datafiles_clear_bad(&s->datafiles, list[i].data_file, list[i].offset);
	/* What was committed before, and then could not be read, is not in effect yet. */
	if (ret == 0 && *ret_n == 0 && atomic_load(&s->damage_stale))
		ret = wfs_damage_load(s);
	if (ret == 0 && *ret_n > 0) {
		atomic_store(&s->settle_wanted, true);
		atomic_store(&s->collect_wanted, true);
		ret = wfs_damage_load(s);
	}
	/* A reader of the old bytes must not be told after the power was gone that they are right. */
	return ret || *ret_n == 0 ? ret : wfs_store_sync(s);
}

int wfs_damage_list(struct wfs_store *s, uint64_t **ret, size_t *ret_n)
{
	int err = wfs_db_begin_read(&s->db);

	return err ? err : wfs_db_end(&s->db, wfs_db_list(&s->db, WFS_Q_DAMAGE_PLACES, ret, ret_n, ""));
}

/* ---- whole copies ---- */

static int drop_locked(struct wfs_store *s, uint64_t manifest, uint64_t data_file)
{
	int ret = wfs_db_run(&s->db, WFS_Q_WHOLE_DROP, "ii", manifest, data_file);

	if (ret || wfs_db_changes(&s->db) != 1)
		return ret;
	ret = wfs_object_died_in(&s->db, data_file);
	return ret ? ret : 1;
}

int wfs_damage_drop_copy(struct wfs_store *s, uint64_t manifest, uint64_t data_file)
{
	int ret = s->db.read_only ? -EROFS : wfs_db_begin(&s->db);

	if (ret == 0)
		ret = wfs_db_end(&s->db, drop_locked(s, manifest, data_file));
	if (ret > 0)
		atomic_store(&s->collect_wanted, true);
	return ret;
}
