/* lib/model_write.h: what waits comes into the shards. */
#include "lib/model_settle.h"

#include <errno.h>
#include <string.h>
#include <time.h>

#include "lib/array.h"
#include "lib/crash.h"
#include "lib/file_priv.h"
#include "lib/reserve.h"
#include "lib/seal.h"
#include "lib/size_text.h"

#define MOST_TRIES 20
#define TRIES_BESIDE 4 /* of them, while others put tensors there */

void wfs_settle_release_rows(struct wfs_settle_rows *rows)
{
	for (size_t i = 0; i < rows->n; i++) {
		free(rows->list[i].name);
		free(rows->list[i].dtype);
		free(rows->list[i].shape);
	}
	free(rows->list);
	*rows = (struct wfs_settle_rows){.list = NULL};
}

static void release_parts(struct wfs_settling *t)
{
	for (size_t i = 0; i < t->n; i++) {
		free(t->parts[i].name);
		free(t->parts[i].shape);
	}
	free(t->parts);
	free(t->order);
	free(t->shards);
	t->parts = NULL;
	t->order = NULL;
	t->shards = NULL;
	t->n = t->n_shards = 0;
	wfs_model_unref(t->m);
	t->m = NULL;
}

/* ---- what waits ---- */

static int add_row(struct wfs_settle_rows *rows, sqlite3_stmt *stmt)
{
	struct wfs_settle_row *r;

	if (WFS_ARRAY_ROOM(rows->list, rows->n, rows->room))
		return -ENOMEM;
	r = &rows->list[rows->n++];
	r->name_len = (size_t)sqlite3_column_bytes(stmt, 0);
	r->name = wfs_copy_bytes(sqlite3_column_blob(stmt, 0), r->name_len);
	r->ino = (uint64_t)sqlite3_column_int64(stmt, 1);
	r->dtype =
		wfs_copy_bytes(sqlite3_column_text(stmt, 2), (size_t)sqlite3_column_bytes(stmt, 2));
	r->shape =
		wfs_copy_bytes(sqlite3_column_text(stmt, 3), (size_t)sqlite3_column_bytes(stmt, 3));
	r->start = (uint64_t)sqlite3_column_int64(stmt, 4);
	r->length = (uint64_t)sqlite3_column_int64(stmt, 5);
	r->waits = r->bad = false;
	return r->name && r->dtype && r->shape ? 0 : -ENOMEM;
}

int wfs_settle_rows(
	struct wfs_store *s, uint64_t dir, const char *variant, struct wfs_settle_rows *rows)
{
	sqlite3_stmt *stmt;
	int more;

	for (more = wfs_db_first(
		     &s->db, WFS_Q_TENSOR_ALL, &stmt, "ib", dir, variant, strlen(variant));
		more > 0; more = wfs_db_next(&s->db, stmt)) {
		int err = add_row(rows, stmt);

		if (err) {
			wfs_db_done(stmt);
			return err;
		}
	}
	return more;
}

/* ---- their files are to be sealed ---- */

static int seal_small_files(struct wfs_store *s, const struct wfs_settle_rows *rows)
{
	uint64_t inos[WFS_SEAL_AT_ONCE];
	size_t n = 0;

	for (size_t i = 0; i < rows->n; i++) {
		if (rows->list[i].ino)
			inos[n++] = rows->list[i].ino;
		if (n == WFS_SEAL_AT_ONCE || (n && i + 1 == rows->n)) {
			wfs_seal_small(s, inos, &n);
			n = 0;
		}
	}
	return 0;
}

static int seal_files(struct wfs_store *s, struct wfs_settle_rows *rows)
{
	unsigned looks = 0; /* at all of them together */

	seal_small_files(s, rows);
	for (size_t i = 0; i < rows->n; i++) {
		int ret = rows->list[i].ino ? wfs_model_seal(s, rows->list[i].ino, &looks) : 0;

		if (ret < 0)
			return ret;
		rows->list[i].waits = ret > 0;
	}
	return 0;
}

/* ---- the whole ---- */

/* 1 with the directory's own limit, 0 without one. */
static int read_limit(struct wfs_store *s, uint64_t dir, uint64_t *ret)
{
	WFS_AUTO_FREE void *value = NULL;
	size_t size;
	int err = wfs_xattr_get(s, dir, WFS_XATTR_MAX_SHARD_SIZE, &value, &size);

	if (err == -ENODATA) {
		*ret = s->options.max_shard_size ? s->options.max_shard_size
						 : WFS_DEFAULT_SHARD_SIZE;
		return 0;
	}
	if (err)
		return err;
	return wfs_size_parse(value, ret) && *ret > 0 ? 1 : -EUCLEAN;
}

static int get_model(struct wfs_settling *t, uint64_t dir, const char *variant)
{
	int err = wfs_model_get(t->store, dir, *variant ? variant : NULL, &t->m);

	if (err)
		return err;
	if (t->m->left_out[0])
		return wfs_err_set(
			t->err, -EBUSY, "shards-left-out", WFS_NO_OFFSET, "%s", t->m->left_out);
	for (size_t i = 0; i < t->m->n_shards; i++)
		if (!t->m->shards[i].content->manifest)
			return wfs_err_set(t->err, -EBUSY, "shard-written", WFS_NO_OFFSET,
				"%s is being written", t->m->shards[i].name);
	return 0;
}

int wfs_model_count_pending(struct wfs_store *s)
{
	/* To write, so that nobody puts one between the two. */
	int err = s->db.read_only ? wfs_db_begin_read(&s->db) : wfs_db_begin(&s->db);
	uint64_t n;

	if (err)
		return err;
	err = wfs_db_number(&s->db, WFS_Q_TENSOR_COUNT, &n, "");
	if (err > 0)
		atomic_store(&s->pending_tensors, (long long)n);
	return wfs_db_end(&s->db, WFS_MIN(err, 0));
}

static int settle_once(struct wfs_settling *t, uint64_t dir, const char *variant, bool reshard)
{
	int limited = read_limit(t->store, dir, &t->max), err;

	if (limited < 0)
		return limited;
	t->replan = reshard || limited;
	err = wfs_db_begin_read(&t->store->db);
	if (!err)
		err = wfs_db_end(&t->store->db, wfs_settle_rows(t->store, dir, variant, &t->rows));
	if (!err)
		err = seal_files(t->store, &t->rows);
	if (!err && (t->rows.n || reshard))
		err = get_model(t, dir, variant);
	wfs_crash_at("settle-after-seal");
	if (!err && t->m && (t->m->n || t->rows.n))
		err = wfs_settle_record(t);
	return err;
}

/*
 * Where somebody puts one tensor after the other, what was read is old by the time that it is
 * sealed. After some tries nobody puts anything there until it is done.
 */
static int settle_at_last(struct wfs_settling *t, uint64_t dir, const char *variant, bool reshard)
{
	pthread_mutex_t *lock = wfs_put_lock(t->store, dir);
	int ret = -EAGAIN;

	for (unsigned tries = 0; ret == -EAGAIN && tries < MOST_TRIES; tries++) {
		bool alone = tries >= TRIES_BESIDE;

		if (alone)
			pthread_mutex_lock(lock);
		ret = settle_once(t, dir, variant, reshard);
		if (alone)
			pthread_mutex_unlock(lock);
		/* What was put may have been replaced, and be gone. */
		if (!alone && (ret == -EIO || ret == -ENOENT))
			ret = -EAGAIN;
		release_parts(t);
		wfs_settle_release_rows(&t->rows);
	}
	return ret;
}

/* Under settle_lock. */
static int settle_variant(struct wfs_store *s, uint64_t dir, const char *variant, bool reshard,
	struct wfs_gone *gone, struct wfs_err *err)
{
	struct wfs_settling t = {.store = s, .gone = gone, .err = err};
	int ret, room = 0;

	/* What was removed from a model on a full disk gives its space back only here. */
	do
		ret = settle_at_last(&t, dir, variant, reshard);
	while (ret == -ENOSPC && wfs_reserve_make_room(s, &room));
	if (ret == 0)
		atomic_store(&s->collect_wanted, true);
	return ret == -EAGAIN ? -EBUSY : ret;
}

/* The variants for which something waits, one after the other: those that stay waiting are met
 * once. */
static int next_variant(struct wfs_store *s, uint64_t dir, const char *after, char **ret)
{
	sqlite3_stmt *row;
	int found = wfs_db_begin_read(&s->db);

	if (found)
		return found;
	found = wfs_db_first(&s->db, WFS_Q_TENSOR_VARIANT_NEXT, &row, "ib", dir, after ? after : "",
		after ? strlen(after) : 0);
	if (found > 0) {
		size_t len = (size_t)sqlite3_column_bytes(row, 0);

		*ret = wfs_copy_bytes(sqlite3_column_blob(row, 0), len);
		wfs_db_done(row);
		found = *ret ? 1 : -ENOMEM;
		/* With a NUL in it, it would be found behind itself again. */
		if (*ret && (strlen(*ret) != len || (after && strcmp(*ret, after) <= 0)))
			found = -EUCLEAN;
	}
	return wfs_db_end(&s->db, found);
}

static int settle_directory(
	struct wfs_store *s, uint64_t dir, struct wfs_gone *gone, struct wfs_err *err)
{
	char *variant = NULL;
	int ret = settle_variant(s, dir, "", false, gone, err);

	while (ret == 0) {
		char *next = NULL;

		ret = next_variant(s, dir, variant, &next);
		free(variant);
		variant = next;
		if (ret <= 0)
			break;
		ret = settle_variant(s, dir, variant, false, gone, err);
	}
	free(variant);
	return WFS_MIN(ret, 0);
}

int wfs_model_settle(struct wfs_store *s, uint64_t dir, struct wfs_gone *gone, struct wfs_err *err)
{
	int ret;

	if (s->db.read_only || !wfs_model_is_pending(s, dir))
		return 0;
	pthread_mutex_lock(&s->settle_lock);
	ret = settle_directory(s, dir, gone, err);
	wfs_model_count_pending(s);
	pthread_mutex_unlock(&s->settle_lock);
	return ret;
}

int wfs_model_settle_all(struct wfs_store *s, struct wfs_gone *gone)
{
	uint64_t dir = 0, before;
	int ret = 0, found = 1;

	while (found > 0 && atomic_load(&s->pending_tensors) > 0) {
		before = dir;
		found = wfs_db_begin_read(&s->db);
		if (!found)
			found = wfs_db_end(
				&s->db, wfs_db_number(&s->db, WFS_Q_TENSOR_DIR, &dir, "i", dir));
		if (found > 0 && dir <= before)
			found = -EUCLEAN;
		if (found > 0) {
			int err = wfs_model_settle(s, dir, gone, NULL);

			ret = ret ? ret : err;
		}
	}
	return found < 0 ? found : ret;
}

/* Of the models in the directory each. */
static int reshard_all(struct wfs_store *s, uint64_t dir, struct wfs_gone *gone, struct wfs_err *err)
{
	char *variant = NULL;
	int ret = settle_variant(s, dir, "", true, gone, err);

	while (ret == 0) {
		char *next = NULL;

		ret = wfs_scan_next_variant(s, dir, variant, &next);
		free(variant);
		variant = next;
		if (ret <= 0)
			break;
		ret = settle_variant(s, dir, variant, true, gone, err);
	}
	free(variant);
	return WFS_MIN(ret, 0);
}

int wfs_model_reshard(struct wfs_store *s, uint64_t dir, struct wfs_gone *gone, struct wfs_err *err)
{
	int ret;

	pthread_mutex_lock(&s->settle_lock);
	ret = settle_directory(s, dir, gone, err);
	if (!ret)
		ret = reshard_all(s, dir, gone, err);
	wfs_model_count_pending(s);
	pthread_mutex_unlock(&s->settle_lock);
	return ret;
}
