#include "lib/manifest.h"

#include <endian.h>
#include <errno.h>
#include <string.h>

#include "lib/array.h"
#include "lib/digest.h"
#include "lib/object.h"
#include "lib/whole.h"

static struct wfs_digest digest_of_ids(const uint64_t *ids, size_t n)
{
	struct wfs_hasher h;

	wfs_hasher_init(&h, 128);
	for (size_t i = 0; i < n; i++) {
		uint64_t le = htole64(ids[i]);

		wfs_hasher_update(&h, &le, sizeof(le));
	}
	return wfs_hasher_final(&h);
}

int wfs_manifest_ids(struct wfs_db *db, uint64_t id, uint64_t **ret, size_t *ret_n)
{
	return wfs_db_list(db, WFS_Q_MANIFEST_IDS, ret, ret_n, "i", id);
}

static int is_equal(struct wfs_db *db, uint64_t id, const uint64_t *ids, size_t n)
{
	WFS_AUTO_FREE uint64_t *have = NULL;
	size_t have_n = 0;
	int ret = wfs_manifest_ids(db, id, &have, &have_n);

	if (ret)
		return ret;
	return have && have_n == n && memcmp(have, ids, n * sizeof(*ids)) == 0;
}

/* 1 and *ret: a live manifest of exactly these objects. */
static int find_equal(struct wfs_db *db, const struct wfs_digest *digest, const uint64_t *ids,
	size_t n, uint64_t *ret)
{
	uint64_t id = 0;

	for (;;) {
		int found = wfs_db_number(db, WFS_Q_MANIFEST_FIND, &id, "bii", digest->bytes,
			sizeof(digest->bytes), (uint64_t)n, id);

		if (found > 0)
			found = is_equal(db, id, ids, n);
		else
			return found;
		if (found != 0) {
			*ret = id;
			return found;
		}
	}
}

static int insert_all(struct wfs_db *db, const struct wfs_digest *digest, const uint64_t *ids,
	size_t n, uint64_t size, uint64_t *ret_id)
{
	int ret = wfs_db_run(db, WFS_Q_MANIFEST_INSERT, "biii", digest->bytes,
		sizeof(digest->bytes), size, (uint64_t)n, UINT64_C(1));

	if (ret)
		return ret;
	*ret_id = wfs_db_insert_id(db);
	for (size_t i = 0; i < n && ret == 0; i++) {
		ret = wfs_object_ref(db, ids[i], 1);
		if (ret == 0)
			ret = wfs_db_run(db, WFS_Q_MANIFEST_ADD, "iii", *ret_id, (uint64_t)i,
				ids[i]);
	}
	return ret;
}

int wfs_manifest_find(struct wfs_db *db, const uint64_t *ids, size_t n)
{
	struct wfs_digest digest = digest_of_ids(ids, n);
	uint64_t id;

	return find_equal(db, &digest, ids, n, &id);
}

int wfs_manifest_put(struct wfs_db *db, const uint64_t *ids, size_t n, uint64_t size,
	uint64_t *ret_id, bool *ret_shared)
{
	struct wfs_digest digest = digest_of_ids(ids, n);
	int found = find_equal(db, &digest, ids, n, ret_id);

	if (found < 0)
		return found;
	*ret_shared = found > 0;
	if (found > 0)
		return wfs_manifest_ref(db, *ret_id);
	return insert_all(db, &digest, ids, n, size, ret_id);
}

int wfs_manifest_set_solid(struct wfs_db *db, uint64_t id)
{
	return wfs_db_run(db, WFS_Q_MANIFEST_SOLID, "i", id);
}

int wfs_manifest_ref(struct wfs_db *db, uint64_t id)
{
	int ret = wfs_db_run(db, WFS_Q_MANIFEST_REF, "i", id);

	if (ret)
		return ret;
	return wfs_db_changes(db) == 1 ? 0 : -EUCLEAN;
}

int wfs_manifest_unref(struct wfs_db *db, uint64_t id)
{
	int ret = wfs_db_run(db, WFS_Q_MANIFEST_UNREF, "i", id);

	if (ret)
		return ret;
	return wfs_db_changes(db) == 1 ? 0 : -EUCLEAN;
}

/* The data files in which something died, each once; few in practice. */
struct died {
	uint64_t *files;
	size_t n, room;
};

static int remember(struct died *died, uint64_t data_file)
{
	if (!data_file || (died->n && died->files[died->n - 1] == data_file))
		return 0;
	if (WFS_ARRAY_ROOM(died->files, died->n, died->room))
		return -ENOMEM;
	died->files[died->n++] = data_file;
	return 0;
}

static int read_tail(struct wfs_db *db, uint64_t id, size_t max, uint64_t *ids, size_t *ret_n,
	uint64_t *ret_first)
{
	sqlite3_stmt *row;
	int more;

	*ret_n = 0;
	for (more = wfs_db_first(db, WFS_Q_MANIFEST_TAIL, &row, "ii", id, (uint64_t)max); more > 0;
		more = wfs_db_next(db, row)) {
		*ret_first = (uint64_t)sqlite3_column_int64(row, 0);
		ids[(*ret_n)++] = (uint64_t)sqlite3_column_int64(row, 1);
	}
	return more;
}

static int drop_tail(struct wfs_db *db, uint64_t id, const uint64_t *ids, size_t n, uint64_t first,
	bool *ret_left)
{
	struct died died = { NULL, 0, 0 };
	int ret = 0;

	for (size_t i = 0; i < n && ret == 0; i++) {
		uint64_t data_file;

		ret = wfs_object_unref(db, ids[i], &data_file);
		if (ret > 0)
			*ret_left = true;
		if (ret >= 0)
			ret = remember(&died, data_file);
	}
	for (size_t i = 0; i < died.n && ret == 0; i++)
		ret = wfs_object_died_in(db, died.files[i]);
	free(died.files);
	return ret ? ret : wfs_db_run(db, WFS_Q_MANIFEST_CUT, "ii", id, first);
}

/*
 * Its row goes, and with it its claim to a whole copy. That it is dead an index said; where the row
 * is not there, or says otherwise, the index would say so for ever.
 */
static int delete_row(struct wfs_db *db, uint64_t id)
{
	uint64_t whole, refs;
	sqlite3_stmt *row;
	int ret = wfs_db_first(db, WFS_Q_MANIFEST_GET, &row, "i", id);

	if (ret <= 0)
		return ret ? ret : -EUCLEAN;
	refs = (uint64_t)sqlite3_column_int64(row, 0);
	whole = (uint64_t)sqlite3_column_int64(row, 3);
	wfs_db_done(row);
	if (refs != 0)
		return -EUCLEAN;
	ret = wfs_db_run(db, WFS_Q_MANIFEST_DELETE, "i", id);
	return ret == 0 && whole ? wfs_object_died_in(db, whole) : ret;
}

int wfs_manifest_dismantle(struct wfs_db *db, uint64_t id, size_t max, bool *ret_left)
{
	WFS_AUTO_FREE uint64_t *ids = reallocarray(NULL, max, sizeof(*ids));
	uint64_t first = 0;
	size_t n = 0;
	int ret;

	if (!ids)
		return -ENOMEM;
	ret = read_tail(db, id, max, ids, &n, &first);
	if (ret == 0 && n > 0)
		ret = drop_tail(db, id, ids, n, first, ret_left);
	if (ret)
		return ret;
	if (n == max && first > 0)
		return 1;
	return delete_row(db, id);
}

static int compare_ids(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return x < y ? -1 : x > y;
}

static uint64_t count_id(const uint64_t *sorted, size_t n, uint64_t id)
{
	const uint64_t *hit = n ? bsearch(&id, sorted, n, sizeof(id), compare_ids) : NULL;
	uint64_t count = 0;

	if (!hit)
		return 0;
	while (hit > sorted && hit[-1] == id)
		hit--;
	for (; hit < sorted + n && *hit == id; hit++)
		count++;
	return count;
}

int wfs_manifest_owns(struct wfs_db *db, uint64_t id, uint64_t data_file)
{
	WFS_AUTO_FREE uint64_t *ids = NULL;
	sqlite3_stmt *row;
	uint64_t refs = 0, whole_of;
	size_t n = 0;
	bool owns = true;
	int ret = wfs_db_number(db, WFS_Q_MANIFEST_GET, &refs, "i", id);

	if (ret <= 0 || refs != 1)
		return ret < 0 ? ret : 0;
	/* A whole copy is its manifest's, whoever's objects are in it. */
	ret = wfs_whole_of(db, data_file, &whole_of);
	if (ret < 0 || (ret > 0 && whole_of != id))
		return WFS_MIN(ret, 0);
	ret = wfs_manifest_ids(db, id, &ids, &n);
	if (ret)
		return ret;
	if (n)
		qsort(ids, n, sizeof(*ids), compare_ids);
	for (ret = wfs_db_first(db, WFS_Q_OBJECTS_OF_FILE, &row, "i", data_file); ret > 0;
		ret = wfs_db_next(db, row)) {
		uint64_t object = (uint64_t)sqlite3_column_int64(row, 0);

		if ((uint64_t)sqlite3_column_int64(row, 1) != count_id(ids, n, object))
			owns = false;
	}
	return ret < 0 ? ret : owns;
}
