/* lib/model.h: files of a model that are not stored, but put together from headers and what its
 * shards have. */
#include <errno.h>
#include <string.h>

#include "lib/compose.h"
#include "lib/digest.h"
#include "lib/model_priv.h"
#include "lib/npy.h"
#include "lib/shard_name.h"
#include "lib/shard_plan.h"
#include "lib/store_priv.h"

int wfs_model_shape(const struct wfs_model *m, size_t i, uint64_t **ret)
{
	const struct wfs_safetensors_tensor *t = wfs_model_tensor(m, i);
	uint64_t *shape = NULL;

	if (t->ndim) {
		shape = reallocarray(NULL, t->ndim, sizeof(*shape));
		if (!shape)
			return -ENOMEM;
		wfs_safetensors_shape(&wfs_model_shard_of(m, i)->st, t, shape, t->ndim);
	}
	*ret = shape;
	return 0;
}

/* ---- digests ---- */

/* Its place in the manifest of its shard: the header is the first object, and what is empty has
 * none. */
uint64_t wfs_model_place(const struct wfs_model *m, size_t i)
{
	const struct wfs_model_shard *shard = wfs_model_shard_of(m, i);
	uint64_t place = 1 + m->tensors[i].place;

	for (size_t k = 0; shard->has_empty && k < m->tensors[i].place; k++)
		place -= shard->st.tensors[k].begin == shard->st.tensors[k].end;
	return place;
}

static int read_digest(struct wfs_db *db, uint64_t manifest, uint64_t place, uint64_t length,
	struct wfs_digest *ret)
{
	sqlite3_stmt *row;
	int found = wfs_db_first(db, WFS_Q_MANIFEST_NTH, &row, "ii", manifest, place);

	if (found <= 0)
		return found < 0 ? found : -ENODATA;
	found = -ENODATA;
	if ((uint64_t)sqlite3_column_int64(row, 0) == length &&
		(size_t)sqlite3_column_bytes(row, 1) == sizeof(ret->bytes)) {
		memcpy(ret->bytes, sqlite3_column_blob(row, 1), sizeof(ret->bytes));
		found = 0;
	}
	wfs_db_done(row);
	return found;
}

int wfs_model_digest(const struct wfs_model *m, size_t i, char ret[40])
{
	const struct wfs_safetensors_tensor *t = wfs_model_tensor(m, i);
	uint64_t manifest = wfs_model_shard_of(m, i)->content->manifest;
	struct wfs_db *db = &m->store->db;
	struct wfs_digest digest;
	int err;

	if (t->begin == t->end || !manifest)
		return -ENODATA;
	err = wfs_db_begin_read(db);
	if (!err)
		err = wfs_db_end(db, read_digest(db, manifest, wfs_model_place(m, i),
					     t->end - t->begin, &digest));
	if (!err)
		wfs_digest_text(&digest, ret);
	return err;
}

/* ---- one tensor ---- */

static int add_tensor(struct wfs_composer *p, const struct wfs_model *m, size_t i)
{
	const struct wfs_safetensors_tensor *t = wfs_model_tensor(m, i);
	const struct wfs_model_shard *shard = wfs_model_shard_of(m, i);

	if (t->begin == t->end)
		return 0;
	return wfs_compose_part(p, shard->content, shard->data_at + t->begin, t->end - t->begin);
}

static struct wfs_safetensors_entry entry_of(
	const struct wfs_model *m, size_t i, const uint64_t *shape)
{
	const struct wfs_safetensors_tensor *t = wfs_model_tensor(m, i);

	return (struct wfs_safetensors_entry){.name = t->name,
		.name_len = t->name_len,
		.ndim = t->ndim,
		.shape = shape,
		.dtype = t->dtype};
}

int wfs_model_tensor_header(const struct wfs_model *m, size_t i, enum wfs_tensor_form form,
	uint8_t **ret, size_t *ret_len)
{
	WFS_AUTO_FREE uint64_t *shape = NULL;
	struct wfs_safetensors_entry entry;
	uint64_t data_len;
	int err = wfs_model_shape(m, i, &shape);

	if (err)
		return err;
	entry = entry_of(m, i, shape);
	if (form == WFS_TENSOR_NPY) {
		if (!wfs_npy_has_dtype(entry.dtype) || entry.ndim > WFS_NPY_MAX_DIMS)
			return -EOPNOTSUPP;
		return wfs_npy_build(entry.dtype, shape, entry.ndim, ret, ret_len);
	}
	return wfs_safetensors_build(&entry, 1, NULL, 0, ret, ret_len, &data_len, NULL);
}

int wfs_model_tensor_file(
	const struct wfs_model *m, size_t i, enum wfs_tensor_form form, struct wfs_content **ret)
{
	WFS_AUTO_FREE uint8_t *header = NULL;
	struct wfs_composer p;
	size_t len;
	int err = wfs_model_tensor_header(m, i, form, &header, &len);

	if (!err)
		err = wfs_compose_begin(&p, &m->store->datafiles);
	if (err)
		return err;
	err = wfs_compose_bytes(&p, header, len);
	if (!err)
		err = add_tensor(&p, m, i);
	if (err)
		wfs_compose_abandon(&p);
	else
		*ret = wfs_compose_end(&p);
	return err;
}

/* ---- all of them, cut differently ---- */

/* Bytes of the headers of all shards of a cut, which are in memory as long as somebody looks at it. */
#define MAX_HEADERS (UINT64_C(256) << 20)

/* What is needed until the cut is made. */
struct cutting {
	const struct wfs_model *m;
	struct wfs_cut *cut;
	uint32_t n_shards;
	uint32_t *shard; /* of each tensor */
	size_t *members; /* tensors by shard; those of shard i are [first[i], first[i + 1]) */
	size_t *first;
	char (*names)[WFS_SHARD_NAME_SIZE]; /* of the shards */
	struct wfs_safetensors_meta *meta;
	size_t n_meta;
	uint64_t elements, bytes; /* of all tensors */
	uint64_t header_bytes;    /* of the shards so far: each repeats all metadata */
};

static void release_cutting(struct cutting *c)
{
	free(c->shard);
	free(c->members);
	free(c->first);
	free(c->names);
	free(c->meta);
}

/* ---- metadata ---- */

/* Keys are looked through one by one; shards seldom differ in theirs. */
#define MOST_META 1024

static bool has_key(const struct cutting *c, const struct wfs_safetensors_meta *meta)
{
	for (size_t i = 0; i < c->n_meta; i++)
		if (c->meta[i].key_len == meta->key_len &&
			memcmp(c->meta[i].key, meta->key, meta->key_len) == 0)
			return true;
	return false;
}

static int gather_meta(struct cutting *c)
{
	size_t n = 0;

	for (size_t i = 0; i < c->m->n_shards; i++)
		n += c->m->shards[i].st.n_meta;
	c->meta = reallocarray(NULL, n + 1, sizeof(*c->meta));
	if (!c->meta)
		return -ENOMEM;
	for (size_t i = 0; i < c->m->n_shards; i++) {
		const struct wfs_safetensors *st = &c->m->shards[i].st;

		for (size_t k = 0; k < st->n_meta; k++)
			if (i == 0 || (c->n_meta < MOST_META && !has_key(c, &st->meta[k])))
				c->meta[c->n_meta++] = st->meta[k];
	}
	return 0;
}

/* ---- which tensor goes where ---- */

static int plan(struct cutting *c)
{
	const struct wfs_model *m = c->m;
	WFS_AUTO_FREE uint64_t *sizes = reallocarray(NULL, m->n, sizeof(*sizes));

	c->shard = reallocarray(NULL, m->n, sizeof(*c->shard));
	if (!sizes || !c->shard)
		return -ENOMEM;
	for (size_t i = 0; i < m->n; i++) {
		const struct wfs_safetensors_tensor *t = wfs_model_tensor(m, i);

		sizes[i] = t->end - t->begin;
		c->bytes += sizes[i];
		c->elements += sizes[i] * 8 / wfs_dtype_bits(t->dtype);
	}
	return wfs_shard_plan(sizes, NULL, m->n, c->cut->max_shard_size, c->shard, &c->n_shards);
}

/* Sort the tensors by shard, those of each in the order of the model. */
static int group(struct cutting *c)
{
	c->members = reallocarray(NULL, c->m->n, sizeof(*c->members));
	c->first = calloc((size_t)c->n_shards + 2, sizeof(*c->first));
	c->names = calloc(c->n_shards, sizeof(*c->names));
	if (!c->members || !c->first || !c->names)
		return -ENOMEM;
	for (size_t i = 0; i < c->m->n; i++)
		c->first[c->shard[i] + 2]++;
	for (size_t i = 2; i < (size_t)c->n_shards + 2; i++)
		c->first[i] += c->first[i - 1];
	for (size_t i = 0; i < c->m->n; i++)
		c->members[c->first[c->shard[i] + 1]++] = i;
	return 0;
}

/* ---- a shard ---- */

struct shapes {
	uint64_t **list;
	size_t n;
};

static void release_shapes(struct shapes *s)
{
	for (size_t i = 0; i < s->n; i++)
		free(s->list[i]);
	free(s->list);
}

/* The entries of the tensors members[0..n), in that order. */
static int fill_entries(const struct wfs_model *m, const size_t *members, size_t n,
	struct wfs_safetensors_entry *entries, struct shapes *shapes)
{
	shapes->list = calloc(n, sizeof(*shapes->list));
	if (!shapes->list)
		return -ENOMEM;
	for (; shapes->n < n; shapes->n++) {
		int err = wfs_model_shape(m, members[shapes->n], &shapes->list[shapes->n]);

		if (err)
			return err;
		entries[shapes->n] = entry_of(m, members[shapes->n], shapes->list[shapes->n]);
	}
	return 0;
}

/* Header first, then the tensors as the header has them. */
static int put_together(const struct wfs_model *m, const uint8_t *header, size_t len,
	const struct wfs_safetensors_entry *entries, size_t n, struct wfs_content **ret)
{
	struct wfs_composer p;
	int err = wfs_compose_begin(&p, &m->store->datafiles);

	if (err)
		return err;
	err = wfs_compose_bytes(&p, header, len);
	for (size_t i = 0; i < n && !err; i++) {
		size_t tensor;

		wfs_model_find(m, entries[i].name, entries[i].name_len, &tensor);
		err = add_tensor(&p, m, tensor);
	}
	if (err)
		wfs_compose_abandon(&p);
	else
		*ret = wfs_compose_end(&p);
	return err;
}

static int cut_shard(struct cutting *c, uint32_t i, struct wfs_cut_file *ret, struct wfs_err *err)
{
	const size_t *members = c->members + c->first[i];
	size_t n = c->first[i + 1] - c->first[i], len;
	WFS_AUTO_FREE struct wfs_safetensors_entry *entries = calloc(n, sizeof(*entries));
	WFS_AUTO_FREE uint8_t *header = NULL;
	struct shapes shapes = {NULL, 0};
	uint64_t data_len;
	int e = entries ? fill_entries(c->m, members, n, entries, &shapes) : -ENOMEM;

	if (!e)
		e = wfs_safetensors_build(
			entries, n, c->meta, c->n_meta, &header, &len, &data_len, err);
	if (!e)
		e = put_together(c->m, header, len, entries, n, &ret->content);
	release_shapes(&shapes);
	if (e)
		return e;
	c->header_bytes += len;
	ret->name = strdup(c->names[i]);
	return ret->name ? 0 : -ENOMEM;
}

/* ---- the index ---- */

/* As the index that there is has it: transformers counts parameters, not what else is saved. */
static uint64_t total_parameters(const struct cutting *c)
{
	const json_t *have =
		c->m->has_index ? json_object_get(c->m->index.metadata, "total_parameters") : NULL;

	return json_is_integer(have) && json_integer_value(have) >= 0
		       ? (uint64_t)json_integer_value(have)
		       : c->elements;
}

static int index_text(struct cutting *c, char **ret, size_t *ret_len, struct wfs_err *err)
{
	WFS_AUTO_FREE struct wfs_index_entry *entries = calloc(c->m->n, sizeof(*entries));
	json_t *metadata;
	int e;

	if (!entries)
		return -ENOMEM;
	for (size_t i = 0; i < c->m->n; i++) {
		const struct wfs_safetensors_tensor *t = wfs_model_tensor(c->m, i);

		entries[i] = (struct wfs_index_entry){t->name, t->name_len, c->names[c->shard[i]]};
	}
	e = wfs_shard_index_totals(c->m->has_index ? c->m->index.metadata : NULL,
		total_parameters(c), c->bytes, &metadata);
	if (!e) {
		e = wfs_shard_index_build(entries, c->m->n, metadata, ret, ret_len, err);
		json_decref(metadata);
	}
	return e;
}

static int cut_index(struct cutting *c, struct wfs_cut_file *ret, struct wfs_err *err)
{
	char name[WFS_SHARD_NAME_SIZE];
	WFS_AUTO_FREE char *text = NULL;
	struct wfs_composer p;
	size_t len;
	int e = wfs_shard_index_name(name, sizeof(name), c->m->base, c->m->variant);

	if (!e)
		e = index_text(c, &text, &len, err);
	if (!e)
		e = wfs_compose_begin(&p, &c->m->store->datafiles);
	if (e)
		return e;
	e = wfs_compose_bytes(&p, text, len);
	if (e) {
		wfs_compose_abandon(&p);
		return e;
	}
	ret->content = wfs_compose_end(&p);
	ret->name = strdup(name);
	return ret->name ? 0 : -ENOMEM;
}

/* ---- the whole ---- */

static int name_shards(struct cutting *c)
{
	uint32_t count = c->n_shards > 1 ? c->n_shards : 0;
	int err = 0;

	for (uint32_t i = 0; i < c->n_shards && !err; i++)
		err = wfs_shard_name(c->names[i], sizeof(c->names[i]), c->m->base, c->m->variant,
			count ? i + 1 : 0, count);
	return err;
}

static int cut_all(struct cutting *c, struct wfs_err *err)
{
	int e = gather_meta(c);

	if (!e)
		e = plan(c);
	if (!e)
		e = group(c);
	if (!e)
		e = name_shards(c);
	if (e)
		return e;
	c->cut->files = calloc((size_t)c->n_shards + 1, sizeof(*c->cut->files));
	if (!c->cut->files)
		return -ENOMEM;
	for (uint32_t i = 0; i < c->n_shards && !e; i++) {
		e = cut_shard(c, i, &c->cut->files[c->cut->n++], err);
		if (!e && c->header_bytes > MAX_HEADERS)
			e = wfs_err_set(err, -EFBIG, "headers-too-large", WFS_NO_OFFSET,
				"the headers of %u shards have more than %llu bytes", c->n_shards,
				(unsigned long long)MAX_HEADERS);
	}
	if (!e && c->n_shards > 1)
		e = cut_index(c, &c->cut->files[c->cut->n++], err);
	return e;
}

void wfs_cuts_free(struct wfs_cut *cuts)
{
	struct wfs_cut *next;

	for (; cuts; cuts = next) {
		next = cuts->next;
		for (size_t i = 0; i < cuts->n; i++) {
			free(cuts->files[i].name);
			wfs_content_unref(cuts->files[i].content);
		}
		free(cuts->files);
		free(cuts);
	}
}

static int make_cut(const struct wfs_model *m, uint64_t max_shard_size, struct wfs_cut **ret,
	struct wfs_err *err)
{
	struct cutting c = {.m = m, .cut = calloc(1, sizeof(*c.cut))};
	int e;

	if (!c.cut)
		return -ENOMEM;
	c.cut->max_shard_size = max_shard_size;
	e = cut_all(&c, err);
	release_cutting(&c);
	if (e)
		wfs_cuts_free(c.cut);
	else
		*ret = c.cut;
	return e;
}

#define CUTS_ALWAYS 8
#define CUT_TENSORS_MAX 400000

/* Each takes some 250 bytes for a tensor, until nobody has asked for the model for a while. */
static bool are_too_many(const struct wfs_model *m)
{
	size_t n = 0;

	for (const struct wfs_cut *cut = m->cuts; cut; cut = cut->next)
		n++;
	return n >= CUTS_ALWAYS && n >= CUT_TENSORS_MAX / m->n;
}

int wfs_model_cut(struct wfs_model *m, uint64_t max_shard_size, const struct wfs_cut **ret,
	struct wfs_err *err)
{
	struct wfs_cut *cut;
	int e = 0;

	if (m->n == 0)
		return -ENODATA;
	/* Who wants the same cut waits for it rather than making it, too. */
	pthread_mutex_lock(&m->cut_lock);
	for (cut = m->cuts; cut && cut->max_shard_size != max_shard_size; cut = cut->next)
		;
	if (!cut && are_too_many(m)) {
		e = wfs_err_set(err, -EBUSY, "too-many-sizes", WFS_NO_OFFSET,
			"it is seen at too many sizes; they are forgotten when nobody has looked at it for some seconds");
	} else if (!cut) {
		e = make_cut(m, max_shard_size, &cut, err);
		if (!e) {
			cut->next = m->cuts;
			m->cuts = cut;
		}
	}
	pthread_mutex_unlock(&m->cut_lock);
	if (!e)
		*ret = cut;
	return e;
}

const struct wfs_cut_file *wfs_cut_find(const struct wfs_cut *cut, const char *name)
{
	for (size_t i = 0; i < cut->n; i++)
		if (strcmp(cut->files[i].name, name) == 0)
			return &cut->files[i];
	return NULL;
}
