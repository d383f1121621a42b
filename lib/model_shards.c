/* lib/model_settle.h: shards and index are written, and take the places of the old ones. */
#include <errno.h>
#include <string.h>
#include <sys/stat.h>

#include "lib/crash.h"
#include "lib/model_settle.h"

/* ---- within the transaction: files ---- */

/* The name stands for `ino` from here on. */
static int set_name(struct wfs_settling *t, const char *name, uint64_t ino)
{
	struct wfs_db *db = &t->store->db;
	struct wfs_attr a;
	uint64_t id, old;
	sqlite3_stmt *row;
	int found = wfs_db_first(db, WFS_Q_NAME_FIND, &row, "ib", t->m->dir, name, strlen(name));

	if (found < 0)
		return found;
	if (found == 0)
		return wfs_db_run(db, WFS_Q_NAME_INSERT, "ibi", t->m->dir, name, strlen(name), ino);
	id = (uint64_t)sqlite3_column_int64(row, 0);
	old = (uint64_t)sqlite3_column_int64(row, 1);
	wfs_db_done(row);
	found = wfs_inode_get(t->store, old, &a);
	if (found <= 0)
		return found ? found : -EUCLEAN;
	if (!S_ISREG(a.mode) && !S_ISLNK(a.mode))
		return wfs_err_set(t->err, -EBUSY, "shard-name-taken", WFS_NO_OFFSET,
			"%s is no regular file", name);
	found = wfs_db_run(db, WFS_Q_NAME_SET_INO, "ii", ino, id);
	return found ? found : wfs_model_unlink_inode(t->store, old, t->gone);
}

static int remove_name(struct wfs_settling *t, const char *name)
{
	struct wfs_db *db = &t->store->db;
	uint64_t id, old;
	sqlite3_stmt *row;
	int found = wfs_db_first(db, WFS_Q_NAME_FIND, &row, "ib", t->m->dir, name, strlen(name));

	if (found <= 0)
		return found;
	id = (uint64_t)sqlite3_column_int64(row, 0);
	old = (uint64_t)sqlite3_column_int64(row, 1);
	wfs_db_done(row);
	found = wfs_db_run(db, WFS_Q_NAME_DELETE, "i", id);
	return found ? found : wfs_model_unlink_inode(t->store, old, t->gone);
}

/* Of the old shard; of the first, for one that is new; as transformers has it, for a new model. */
static const struct wfs_safetensors_meta *meta_of(
	const struct wfs_settling *t, const struct wfs_settle_shard *shard, size_t *ret_n)
{
	static const struct wfs_safetensors_meta usual = {"format", "pt", 6, 2};
	const struct wfs_model_shard *old = shard->old;

	if (!old && t->m->n_shards)
		old = &t->m->shards[0];
	*ret_n = old ? old->st.n_meta : 1;
	return old ? old->st.meta : &usual;
}

static int compare_parts(const void *a, const void *b, void *ctx)
{
	const struct wfs_settling *t = ctx;
	const struct wfs_settle_part *x = &t->parts[*(const size_t *)a],
				     *y = &t->parts[*(const size_t *)b];

	if (x->dtype != y->dtype)
		return x->dtype > y->dtype ? -1 : 1;
	return wfs_compare_bytes(x->name, x->name_len, y->name, y->name_len);
}

/* The header, and the objects in its order: that of safetensors, by dtype and name. */
static int build(struct wfs_settling *t, struct wfs_settle_shard *shard, uint8_t **ret,
	size_t *ret_len, uint64_t *ret_data_len)
{
	WFS_AUTO_FREE struct wfs_safetensors_entry *entries =
		calloc(shard->n + 1, sizeof(*entries));
	size_t n_meta;
	const struct wfs_safetensors_meta *meta = meta_of(t, shard, &n_meta);

	if (!entries)
		return -ENOMEM;
	if (shard->n)
		qsort_r(t->order + shard->first, shard->n, sizeof(*t->order), compare_parts, t);
	for (size_t i = 0; i < shard->n; i++) {
		const struct wfs_settle_part *p = &t->parts[t->order[shard->first + i]];

		entries[i] = (struct wfs_safetensors_entry){.name = p->name,
			.name_len = (uint32_t)p->name_len,
			.ndim = p->ndim,
			.shape = p->shape,
			.dtype = p->dtype};
	}
	return wfs_safetensors_build(
		entries, shard->n, meta, n_meta, ret, ret_len, ret_data_len, t->err);
}

static int write_shard(struct wfs_settling *t, struct wfs_settle_shard *shard)
{
	WFS_AUTO_FREE uint64_t *ids = reallocarray(NULL, shard->n + 1, sizeof(*ids));
	WFS_AUTO_FREE uint8_t *header = NULL;
	uint64_t data_len, ino;
	size_t len, n = 1;
	int err = ids ? build(t, shard, &header, &len, &data_len) : -ENOMEM;

	if (!err)
		err = wfs_model_insert_bytes(t->store, header, len, &ids[0]);
	if (err)
		return err;
	for (size_t i = 0; i < shard->n; i++) {
		const struct wfs_settle_part *p = &t->parts[t->order[shard->first + i]];

		if (p->object)
			ids[n++] = p->object;
	}
	err = wfs_model_make_inode(t->store, &shard->like, 1, ids, n, len + data_len, &ino);
	if (!err)
		err = wfs_db_run(&t->store->db, WFS_Q_INODE_SET_VERDICT, "itti",
			(uint64_t)WFS_VERDICT_VALID, NULL, NULL, ino);
	return err ? err : set_name(t, shard->name, ino);
}

static int index_text(struct wfs_settling *t, char **ret, size_t *ret_len)
{
	WFS_AUTO_FREE struct wfs_index_entry *entries = calloc(t->n + 1, sizeof(*entries));
	uint64_t elements = 0, bytes = 0;
	json_t *metadata;
	int err;

	if (!entries)
		return -ENOMEM;
	for (size_t i = 0; i < t->n; i++) {
		const struct wfs_settle_part *p = &t->parts[i];

		entries[i] =
			(struct wfs_index_entry){p->name, p->name_len, t->shards[p->shard].name};
		elements += p->length * 8 / wfs_dtype_bits(p->dtype);
		bytes += p->length;
	}
	err = wfs_shard_index_totals(
		t->m->has_index ? t->m->index.metadata : NULL, elements, bytes, &metadata);
	if (err)
		return err;
	err = wfs_shard_index_build(entries, t->n, metadata, ret, ret_len, t->err);
	json_decref(metadata);
	return err;
}

static int write_index(struct wfs_settling *t)
{
	struct wfs_attr like = t->shards[0].like;
	char name[WFS_SHARD_NAME_SIZE];
	WFS_AUTO_FREE char *text = NULL;
	uint64_t id, ino;
	size_t len;
	int err = wfs_shard_index_name(name, sizeof(name), t->m->base, t->m->variant);

	if (err)
		return err;
	if (t->n_shards < 2)
		return remove_name(t, name);
	err = index_text(t, &text, &len);
	if (!err)
		err = wfs_model_insert_bytes(t->store, text, len, &id);
	if (!err)
		err = wfs_model_make_inode(t->store, &like, 1, &id, 1, len, &ino);
	return err ? err : set_name(t, name, ino);
}

/* Names that shards had, and have no more. */
static int remove_old_names(struct wfs_settling *t)
{
	int err = 0;

	for (size_t i = 0; i < t->m->n_shards && !err; i++) {
		const char *name = t->m->shards[i].name;
		bool stays = false;

		for (uint32_t k = 0; k < t->n_shards && !stays; k++)
			stays = strcmp(t->shards[k].name, name) == 0;
		if (!stays)
			err = remove_name(t, name);
	}
	return err;
}

static int drop_rows(struct wfs_settling *t)
{
	const char *variant = t->m->variant ? t->m->variant : "";
	int err = 0;

	for (size_t i = 0; i < t->rows.n && !err; i++) {
		const struct wfs_settle_row *r = &t->rows.list[i];

		if (r->waits)
			continue;
		err = wfs_db_run(&t->store->db, WFS_Q_TENSOR_DELETE, "ibb", t->m->dir, variant,
			strlen(variant), r->name, r->name_len);
		if (!err && r->ino)
			err = wfs_model_unlink_inode(t->store, r->ino, t->gone);
	}
	return err;
}

/* Are the shards those that the model was read from? */
static int check_unchanged(struct wfs_settling *t)
{
	for (size_t i = 0; i < t->m->n_shards; i++) {
		const struct wfs_model_shard *shard = &t->m->shards[i];
		struct wfs_attr a;
		int found = wfs_inode_get(t->store, shard->attr.ino, &a);

		if (found < 0)
			return found;
		if (!found || a.nlink == 0 || a.manifest != shard->content->manifest)
			return -EAGAIN;
	}
	return 0;
}

static int write_all(struct wfs_settling *t)
{
	int64_t now = wfs_now_ns();
	int err = 0;

	for (uint32_t i = 0; i < t->n_shards && !err; i++)
		if (!t->shards[i].is_same)
			err = write_shard(t, &t->shards[i]);
	if (!err)
		err = write_index(t);
	if (!err)
		err = remove_old_names(t);
	if (!err)
		err = drop_rows(t);
	return err ? err
		   : wfs_db_run(&t->store->db, WFS_Q_INODE_TOUCH_DIR, "iiii", now, now, INT64_C(0),
			     t->m->dir);
}

/* Has the directory been removed? Then what waits for it goes, too. 1, 0 or -errno. */
static int is_removed(struct wfs_settling *t)
{
	struct wfs_attr a;
	int found = wfs_inode_get(t->store, t->m->dir, &a);

	return found < 0 ? found : !found || a.nlink == 0;
}

/* Is what waits what was read? */
static int check_rows(struct wfs_settling *t)
{
	struct wfs_settle_rows now = {.list = NULL};
	int err = wfs_settle_rows(t->store, t->m->dir, t->m->variant ? t->m->variant : "", &now);

	if (!err && now.n != t->rows.n)
		err = -EAGAIN;
	for (size_t i = 0; i < now.n && !err; i++)
		if (now.list[i].ino != t->rows.list[i].ino ||
			wfs_compare_bytes(now.list[i].name, now.list[i].name_len,
				t->rows.list[i].name, t->rows.list[i].name_len) != 0)
			err = -EAGAIN;
	wfs_settle_release_rows(&now);
	return err;
}

int wfs_settle_record(struct wfs_settling *t)
{
	size_t gone = t->gone->n;
	int err = wfs_db_begin(&t->store->db);

	if (err)
		return err;
	err = is_removed(t);
	if (err > 0)
		return wfs_db_end(&t->store->db, drop_rows(t));
	if (!err)
		err = check_unchanged(t);
	if (!err)
		err = check_rows(t);
	if (!err)
		err = wfs_settle_plan(t);
	if (!err)
		err = write_all(t);
	wfs_crash_at("settle-before-commit");
	err = wfs_db_end(&t->store->db, err);
	wfs_crash_at("settle-after-commit");
	if (err)
		t->gone->n = gone;
	return err;
}
