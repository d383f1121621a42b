/* lib/model_settle.h: which tensors the shards are to have, and which goes where. */
#include "lib/model_settle.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "lib/manifest.h"
#include "lib/shard_plan.h"

char *wfs_copy_bytes(const void *bytes, size_t len)
{
	char *copy = malloc(len + 1);

	if (copy) {
		if (len)
			memcpy(copy, bytes, len);
		copy[len] = '\0';
	}
	return copy;
}

/* ---- the tensors of the new shards ---- */

static int compare_rows(const void *a, const void *b)
{
	const struct wfs_settle_row *x = *(const struct wfs_settle_row *const *)a,
				    *y = *(const struct wfs_settle_row *const *)b;

	return wfs_compare_bytes(x->name, x->name_len, y->name, y->name_len);
}

/* From the shards as they are. `ids`: the n objects of its shard, fewer than its tensors in a damaged store. */
static int part_of_model(
	struct wfs_settling *t, size_t i, const uint64_t *ids, size_t n, struct wfs_settle_part *ret)
{
	const struct wfs_safetensors_tensor *tensor = wfs_model_tensor(t->m, i);
	uint64_t place = wfs_model_place(t->m, i);

	*ret = (struct wfs_settle_part){.name = wfs_copy_bytes(tensor->name, tensor->name_len),
		.name_len = tensor->name_len,
		.dtype = tensor->dtype,
		.ndim = tensor->ndim,
		.length = tensor->end - tensor->begin,
		.shard = t->m->tensors[i].shard,
		.old = t->m->tensors[i].shard};
	if (!ret->name)
		return -ENOMEM;
	if (ret->length && place >= n)
		return -EUCLEAN;
	if (ret->length)
		ret->object = ids[place];
	return wfs_model_shape(t->m, i, &ret->shape);
}

/* The shape of a row: what lib/model_put.c wrote. */
static int parse_shape(const char *text, uint64_t **ret, uint32_t *ret_ndim)
{
	size_t n = 0;
	uint64_t *shape = reallocarray(NULL, strlen(text) / 2 + 1, sizeof(*shape));

	if (!shape)
		return -ENOMEM;
	for (const char *at = strpbrk(text, "0123456789"); at; at = strpbrk(at, "0123456789")) {
		char *end;

		shape[n++] = strtoull(at, &end, 10);
		at = end;
	}
	*ret = shape;
	*ret_ndim = (uint32_t)n;
	return 0;
}

/*
 * The object behind the header of the file that was put. -EAGAIN: it is written again; -ESTALE: its
 * bytes are not those that were put, and nobody is at it.
 */
static int object_of_file(struct wfs_settling *t, const struct wfs_settle_row *r, uint64_t *ret)
{
	WFS_AUTO_FREE uint64_t *ids = NULL;
	uint64_t length = 0;
	struct wfs_attr a;
	sqlite3_stmt *stmt;
	size_t n;
	int found = wfs_inode_get(t->store, r->ino, &a);

	if (found <= 0)
		return found ? found : -EUCLEAN;
	if (!a.manifest)
		return -EAGAIN;
	found = wfs_manifest_ids(&t->store->db, a.manifest, &ids, &n);
	if (found)
		return found;
	if (n != 2)
		return -ESTALE;
	found = wfs_db_first(&t->store->db, WFS_Q_OBJECT_GET, &stmt, "i", ids[1]);
	if (found > 0) {
		length = (uint64_t)sqlite3_column_int64(stmt, 2);
		wfs_db_done(stmt);
	}
	*ret = ids[1];
	return found < 0 ? found : length == r->length ? 0 : -ESTALE;
}

static int part_of_row(
	struct wfs_settling *t, const struct wfs_settle_row *r, struct wfs_settle_part *ret)
{
	int found;

	*ret = (struct wfs_settle_part){.name = wfs_copy_bytes(r->name, r->name_len),
		.name_len = r->name_len,
		.length = r->length,
		.shard = UINT32_MAX,
		.is_new = true};
	if (!ret->name)
		return -ENOMEM;
	if (!wfs_dtype_find(r->dtype, strlen(r->dtype), &ret->dtype))
		return -EUCLEAN;
	found = wfs_inode_get(t->store, r->ino, &ret->from);
	if (found <= 0)
		return found ? found : -EUCLEAN;
	found = r->length ? object_of_file(t, r, &ret->object) : 0;
	return found ? found : parse_shape(r->shape, &ret->shape, &ret->ndim);
}

static void release_part(struct wfs_settle_part *part)
{
	free(part->name);
	free(part->shape);
	*part = (struct wfs_settle_part){.name = NULL};
}

/* As part_of_row; where it cannot be had now the row says so, and *ret is empty. */
static int try_row(struct wfs_settling *t, struct wfs_settle_row *r, struct wfs_settle_part *ret)
{
	int err = part_of_row(t, r, ret);

	if (err != -EAGAIN && err != -ESTALE)
		return err;
	release_part(ret);
	r->waits = err == -EAGAIN;
	r->bad = err == -ESTALE;
	return 0;
}

static int add_part(struct wfs_settling *t, int err, const struct wfs_settle_part *part)
{
	t->parts[t->n++] = *part; /* also what was half made: it is released */
	return err;
}

static struct wfs_settle_row *find_row(
	struct wfs_settle_row **by_name, size_t n, const char *name, size_t len)
{
	struct wfs_settle_row key = {.name = (char *)name, .name_len = len};
	const struct wfs_settle_row *pointer = &key;
	struct wfs_settle_row **hit =
		n ? bsearch(&pointer, by_name, n, sizeof(*by_name), compare_rows) : NULL;

	return hit ? *hit : NULL;
}

/* Tensors of the model keep their places; a row for one of them replaces or removes it. */
static int merge(struct wfs_settling *t, struct wfs_settle_row **by_name, size_t n_rows)
{
	uint64_t *ids = NULL;
	uint32_t shard = UINT32_MAX;
	size_t n = 0;
	int err = 0;

	for (size_t i = 0; i < t->m->n && !err; i++) {
		const struct wfs_safetensors_tensor *tensor = wfs_model_tensor(t->m, i);
		struct wfs_settle_row *r =
			find_row(by_name, n_rows, tensor->name, tensor->name_len);
		struct wfs_settle_part part = {.name = NULL};

		if (t->m->tensors[i].shard != shard) {
			shard = t->m->tensors[i].shard;
			free(ids);
			ids = NULL;
			err = wfs_manifest_ids(
				&t->store->db, t->m->shards[shard].content->manifest, &ids, &n);
			/* One object alone: more tensors than the seal splits. */
			if (!err && n < 2 && t->m->shards[shard].st.data_len > 0)
				err = -EFBIG;
			if (err)
				break;
		}
		if (r && !r->waits && !r->ino)
			continue;
		if (r && !r->waits) {
			err = try_row(t, r, &part);
			part.shard = shard;
		}
		if (!err && (!r || r->waits || r->bad))
			err = part_of_model(t, i, ids, n, &part);
		err = add_part(t, err, &part);
	}
	free(ids);
	return err;
}

static int add_new(struct wfs_settling *t)
{
	int err = 0;

	for (size_t i = 0; i < t->rows.n && !err; i++) {
		struct wfs_settle_row *r = &t->rows.list[i];
		struct wfs_settle_part part = {.name = NULL};
		size_t have;

		if (!r->ino || r->waits || wfs_model_find(t->m, r->name, r->name_len, &have))
			continue;
		err = try_row(t, r, &part);
		if (err || (!r->waits && !r->bad))
			err = add_part(t, err, &part);
	}
	return err;
}

static int gather(struct wfs_settling *t)
{
	WFS_AUTO_FREE struct wfs_settle_row **by_name =
		reallocarray(NULL, t->rows.n + 1, sizeof(*by_name));
	int err;

	t->parts = calloc(t->m->n + t->rows.n + 1, sizeof(*t->parts));
	if (!by_name || !t->parts)
		return -ENOMEM;
	for (size_t i = 0; i < t->rows.n; i++)
		by_name[i] = &t->rows.list[i];
	if (t->rows.n)
		qsort(by_name, t->rows.n, sizeof(*by_name), compare_rows);
	err = merge(t, by_name, t->rows.n);
	return err ? err : add_new(t);
}

/* ---- which shard each goes into ---- */

/* Everything planned again. */
static int plan_again(struct wfs_settling *t)
{
	WFS_AUTO_FREE uint64_t *sizes = reallocarray(NULL, t->n + 1, sizeof(*sizes));
	WFS_AUTO_FREE uint32_t *shard = reallocarray(NULL, t->n + 1, sizeof(*shard));
	int err;

	if (!sizes || !shard)
		return -ENOMEM;
	for (size_t i = 0; i < t->n; i++)
		sizes[i] = t->parts[i].length;
	err = wfs_shard_plan(sizes, NULL, t->n, t->max, shard, &t->n_shards);
	for (size_t i = 0; i < t->n && !err; i++)
		t->parts[i].shard = shard[i];
	return err;
}

/* Shards without a tensor go; *map: the new number of each. */
static void close_gaps(struct wfs_settling *t, const size_t *count, uint32_t *map, uint32_t n)
{
	t->n_shards = 0;
	for (uint32_t i = 0; i < n; i++)
		map[i] = count[i] ? t->n_shards++ : UINT32_MAX;
	for (size_t i = 0; i < t->n; i++)
		t->parts[i].shard = map[t->parts[i].shard];
}

/* Each stays where it is; new ones go into the last, and into further ones. *ret: of each new shard
 * the old one's number. */
static int keep_layout(struct wfs_settling *t, uint32_t **ret_old)
{
	size_t room = t->m->n_shards + t->n + 1;
	WFS_AUTO_FREE size_t *count = calloc(room, sizeof(*count));
	WFS_AUTO_FREE uint64_t *bytes = calloc(room, sizeof(*bytes));
	uint32_t *map = calloc(room, sizeof(*map));
	uint32_t n = (uint32_t)t->m->n_shards;

	if (!count || !bytes || !map) {
		free(map);
		return -ENOMEM;
	}
	for (size_t i = 0; i < t->n; i++)
		if (t->parts[i].shard != UINT32_MAX)
			bytes[t->parts[i].shard] += t->parts[i].length;
	for (size_t i = 0; i < t->n; i++) {
		struct wfs_settle_part *p = &t->parts[i];

		if (p->shard == UINT32_MAX) {
			if (n == 0 || (bytes[n - 1] && bytes[n - 1] + p->length > t->max))
				n++;
			p->shard = n - 1;
			bytes[n - 1] += p->length;
		}
		count[p->shard]++;
	}
	close_gaps(t, count, map, n);
	*ret_old = map;
	return 0;
}

/* order[] has the tensors by shard, those of each as they are in parts[]. */
static int group(struct wfs_settling *t)
{
	WFS_AUTO_FREE size_t *at = calloc((size_t)t->n_shards + 2, sizeof(*at));

	t->order = reallocarray(NULL, t->n + 1, sizeof(*t->order));
	t->shards = calloc((size_t)t->n_shards + 1, sizeof(*t->shards));
	if (!at || !t->order || !t->shards)
		return -ENOMEM;
	for (size_t i = 0; i < t->n; i++)
		t->shards[t->parts[i].shard].n++;
	for (uint32_t i = 0; i < t->n_shards; i++) {
		t->shards[i].first = at[i];
		at[i + 1] = at[i] + t->shards[i].n;
	}
	for (size_t i = 0; i < t->n; i++)
		t->order[at[t->parts[i].shard]++] = i;
	return 0;
}

/* From which old shard each new one goes on. */
static void connect(struct wfs_settling *t, const uint32_t *map)
{
	for (uint32_t i = 0; i < t->m->n_shards; i++)
		if (map && map[i] != UINT32_MAX)
			t->shards[map[i]].old = &t->m->shards[i];
	/* Planned again, a shard goes on from the one that had its name. */
	for (uint32_t i = 0; i < t->n_shards && !map; i++)
		for (uint32_t k = 0; k < t->m->n_shards; k++)
			if (strcmp(t->shards[i].name, t->m->shards[k].name) == 0)
				t->shards[i].old = &t->m->shards[k];
}

/* Mode and owner: of the old shard, or of any of the model's, or of the file that a tensor was put
 * by. */
static void choose_like(struct wfs_settling *t, struct wfs_settle_shard *shard)
{
	if (shard->old)
		shard->like = shard->old->attr;
	else if (t->m->n_shards)
		shard->like = t->m->shards[0].attr;
	else if (shard->n)
		shard->like = t->parts[t->order[shard->first]].from;
	shard->like.mode = S_IFREG | (shard->like.mode & 0777);
}

static int name_shards(struct wfs_settling *t)
{
	bool keeps = !t->replan && t->n_shards == t->m->n_shards;
	uint32_t count = t->n_shards > 1 ? t->n_shards : 0;
	int err = 0;

	for (uint32_t i = 0; i < t->n_shards && !err; i++) {
		struct wfs_settle_shard *shard = &t->shards[i];

		if (keeps && shard->old)
			snprintf(shard->name, sizeof(shard->name), "%s", shard->old->name);
		else
			err = wfs_shard_name(shard->name, sizeof(shard->name), t->m->base,
				t->m->variant, count ? i + 1 : 0, count);
	}
	return err;
}

/* The same tensors with the same bytes under the same name? */
static bool is_same(const struct wfs_settling *t, const struct wfs_settle_shard *shard)
{
	if (!shard->old || strcmp(shard->old->name, shard->name) != 0 ||
		shard->old->st.n_tensors != shard->n)
		return false;
	for (size_t i = 0; i < shard->n; i++) {
		const struct wfs_settle_part *p = &t->parts[t->order[shard->first + i]];

		if (p->is_new || &t->m->shards[p->old] != shard->old)
			return false;
	}
	return true;
}

static int lay_out(struct wfs_settling *t)
{
	WFS_AUTO_FREE uint32_t *map = NULL;
	int err = t->replan ? plan_again(t) : keep_layout(t, &map);

	/* Whoever takes the last tensor out still has a model that loads. */
	if (!err && t->n_shards == 0 && t->m->n_shards > 0)
		t->n_shards = 1;
	if (!err)
		err = group(t);
	if (err)
		return err;
	if (map)
		connect(t, map);
	err = name_shards(t);
	if (!err && !map)
		connect(t, NULL);
	for (uint32_t i = 0; i < t->n_shards && !err; i++) {
		choose_like(t, &t->shards[i]);
		t->shards[i].is_same = is_same(t, &t->shards[i]);
	}
	return err;
}

int wfs_settle_plan(struct wfs_settling *t)
{
	int err = gather(t);

	return err ? err : lay_out(t);
}
