#include "lib/object.h"

#include <errno.h>

#include "lib/datafile_state.h"

int wfs_object_find(struct wfs_db *db, const struct wfs_digest *digest, uint64_t length,
	int64_t after, struct wfs_object *ret)
{
	sqlite3_stmt *row;
	int found = wfs_db_first(db, WFS_Q_OBJECT_FIND, &row, "bii", digest->bytes,
		sizeof(digest->bytes), after, length);

	if (found <= 0)
		return found;
	ret->id = (uint64_t)sqlite3_column_int64(row, 0);
	ret->ordinal = (uint64_t)sqlite3_column_int64(row, 1);
	ret->data_file = (uint64_t)sqlite3_column_int64(row, 2);
	ret->offset = (uint64_t)sqlite3_column_int64(row, 3);
	ret->length = length;
	wfs_db_done(row);
	return 1;
}

static int insert_row(struct wfs_db *db, const struct wfs_digest *digest, struct wfs_object *o)
{
	sqlite3_stmt *row;
	int ret;

	/* "o" would make an offset of 0 NULL; only a missing data file is. */
	if (o->data_file)
		return wfs_db_run(db, WFS_Q_OBJECT_INSERT, "biiiii", digest->bytes,
			sizeof(digest->bytes), o->ordinal, o->length, UINT64_C(0), o->data_file,
			o->offset);
	ret = wfs_db_first(db, WFS_Q_OBJECT_INSERT, &row, "biiioo", digest->bytes,
		sizeof(digest->bytes), o->ordinal, o->length, UINT64_C(0), UINT64_C(0), UINT64_C(0));
	return ret < 0 ? ret : 0;
}

int wfs_object_insert(struct wfs_db *db, const struct wfs_digest *digest, struct wfs_object *o,
	const void *bytes)
{
	uint64_t last = 0;
	int ret = wfs_db_number(db, WFS_Q_OBJECT_LAST, &last, "b", digest->bytes,
		sizeof(digest->bytes));

	if (ret < 0)
		return ret;
	o->ordinal = ret ? last + 1 : 0;
	ret = insert_row(db, digest, o);
	if (ret)
		return ret;
	o->id = wfs_db_insert_id(db);
	if (!bytes)
		return 0;
	return wfs_db_run(db, WFS_Q_BYTES_INSERT, "ib", o->id, bytes, (size_t)o->length);
}

int wfs_object_ref(struct wfs_db *db, uint64_t id, uint64_t n)
{
	int ret = wfs_db_run(db, WFS_Q_OBJECT_REF, "ii", n, id);

	if (ret)
		return ret;
	return wfs_db_changes(db) == 1 ? 0 : -ESTALE;
}

int wfs_object_unref(struct wfs_db *db, uint64_t id, uint64_t *ret_data_file)
{
	uint64_t data_file;
	sqlite3_stmt *row;
	int64_t refs;
	int ret = wfs_db_first(db, WFS_Q_OBJECT_GET, &row, "i", id);

	*ret_data_file = 0;
	if (ret <= 0)
		return ret ? ret : -EUCLEAN;
	refs = sqlite3_column_int64(row, 0);
	data_file = (uint64_t)sqlite3_column_int64(row, 1);
	wfs_db_done(row);
	if (refs > 1) {
		ret = wfs_db_run(db, WFS_Q_OBJECT_REF, "ii", INT64_C(-1), id);
		return ret ? ret : 1;
	}
	if (data_file)
		*ret_data_file = data_file;
	else
		ret = wfs_db_run(db, WFS_Q_BYTES_DELETE, "i", id);
	if (ret >= 0)
		ret = wfs_db_run(db, WFS_Q_DAMAGE_CLEAR, "i", id);
	return ret < 0 ? ret : wfs_db_run(db, WFS_Q_OBJECT_DELETE, "i", id);
}

int wfs_object_died_in(struct wfs_db *db, uint64_t data_file)
{
	uint64_t one;
	int alive = wfs_db_number(db, WFS_Q_DATA_IN_USE, &one, "i", data_file);

	if (alive < 0)
		return alive;
	if (alive)
		return wfs_db_run(db, WFS_Q_DATA_HOLED, "i", data_file);
	return wfs_db_run(db, WFS_Q_DATA_STATE, "ii", (uint64_t)WFS_DATA_DOOMED, data_file);
}
