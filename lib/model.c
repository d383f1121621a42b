#include "lib/model.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "lib/digest.h"
#include "lib/file_priv.h"
#include "lib/model_priv.h"
#include "lib/shard_name.h"
#include "lib/store_priv.h"

#define MODELS_KEPT 16
#define MOST_LOOKS 20	 /* at a directory whose shards are replaced meanwhile */
#define TICKS_KEPT 20	 /* calls of wfs_model_tidy for which an unused model is kept */
#define TICKS_REPLACED 4 /* for which one is kept that is not so any more */
#define TICKS_CHANGED 5	 /* what a call counts for where the store has changed since */

/* ---- reading ---- */

static void leave_out(struct wfs_model *m, const char *name, const char *why)
{
	if (!m->left_out[0])
		snprintf(m->left_out, sizeof(m->left_out), "%s: %s", name, why);
}

/* A content that stays as it is where that can be had. */
static int content_of(struct wfs_model *m, uint64_t ino, struct wfs_content **ret)
{
	struct wfs_file *f;
	int err = wfs_file_get(m->store, ino, &f);

	if (err)
		return err;
	if (wfs_file_is_dirty(f) && !m->store->db.read_only)
		wfs_model_seal(m->store, ino, &m->looks); /* a full disk may prevent it, too */
	*ret = wfs_file_content(f);
	m->may_change |= (*ret)->staging != NULL;
	wfs_file_unref(f);
	return 0;
}

static int read_shard(
	struct wfs_model *m, const struct wfs_model_file *file, struct wfs_model_shard *shard)
{
	struct wfs_err why = WFS_ERR_INIT;
	int err;

	if (!S_ISREG(file->attr.mode)) {
		leave_out(m, file->name, "it is no regular file");
		return 0;
	}
	err = content_of(m, file->attr.ino, &shard->content);

	/* Its bytes would change under who looks at a view. */
	if (!err && shard->content->staging && !m->store->db.read_only) {
		leave_out(m, file->name, "it is being written");
		return 0;
	}
	if (!err)
		err = wfs_content_header(shard->content, &shard->header, &shard->st, &why);
	if (err == -ENOENT)
		return -EAGAIN; /* it was replaced since the directory was looked at */
	if (err == -EIO) {
		m->may_change = true; /* it may be the disk's mood: looked at again the next time */
		leave_out(m, file->name, "it cannot be read");
		return 0;
	}
	if (err)
		return err;
	if (shard->st.verdict != WFS_SAFETENSORS_VALID) {
		leave_out(m, file->name, why.reason ? why.text : "it is not complete");
		return 0;
	}
	shard->name = strdup(file->name);
	shard->attr = file->attr;
	shard->attr.manifest = shard->content->manifest;
	shard->data_at = WFS_SAFETENSORS_PREFIX + shard->st.header_len;
	for (size_t i = 0; i < shard->st.n_tensors; i++)
		shard->has_empty |= shard->st.tensors[i].begin == shard->st.tensors[i].end;
	return shard->name ? 1 : -ENOMEM;
}

static void release_shard(struct wfs_model_shard *shard)
{
	free(shard->name);
	wfs_content_unref(shard->content);
	wfs_safetensors_release(&shard->st);
	free(shard->header);
}

static int read_index(struct wfs_model *m, const struct wfs_model_file *file, struct wfs_err *err)
{
	WFS_AUTO_FREE char *text = NULL;
	struct wfs_content *c = NULL;
	uint64_t size;
	ssize_t n;

	if (!S_ISREG(file->attr.mode))
		return wfs_err_set(err, -EBADMSG, "index-no-file", WFS_NO_OFFSET, "it is no regular file");
	n = content_of(m, file->attr.ino, &c);
	if (n)
		return n == -ENOENT ? -EAGAIN : (int)n;
	n = wfs_content_size(c, &size);
	if (n == 0 && size > WFS_SHARD_INDEX_MAX_TEXT)
		n = wfs_err_set(err, -EBADMSG, "index-too-large", WFS_NO_OFFSET,
			"%s has more than %llu bytes", file->name,
			(unsigned long long)WFS_SHARD_INDEX_MAX_TEXT);
	if (n == 0) {
		text = malloc(size + 1);
		n = text ? wfs_content_read(c, text, size, 0) : -ENOMEM;
	}
	wfs_content_unref(c);
	if (n >= 0)
		n = wfs_shard_index_parse(text, (size_t)n, &m->index, err);
	m->has_index = n == 0;
	return (int)n;
}

static int compare_texts(const void *a, const void *b)
{
	return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* Which shards the index names, each once; the caller frees the list, not the names. */
static int named_shards(const struct wfs_model *m, const char ***ret, size_t *ret_n)
{
	const char **names = reallocarray(NULL, m->index.n + 1, sizeof(*names));
	size_t kept = 0;

	if (!names)
		return -ENOMEM;
	for (size_t i = 0; i < m->index.n; i++)
		names[i] = m->index.entries[i].shard;
	if (m->index.n)
		qsort(names, m->index.n, sizeof(*names), compare_texts);
	for (size_t i = 0; i < m->index.n; i++)
		if (kept == 0 || strcmp(names[kept - 1], names[i]) != 0)
			names[kept++] = names[i];
	*ret = names;
	*ret_n = kept;
	return 0;
}

/* Of the files, those that are named; the others go. */
static void keep_named(struct wfs_scan *scan, const char **names, size_t n)
{
	size_t kept = 0;

	for (size_t i = 0; i < scan->n; i++) {
		const char *name = scan->files[i].name;

		if (bsearch(&name, names, n, sizeof(*names), compare_texts))
			scan->files[kept++] = scan->files[i];
		else
			free(scan->files[i].name);
	}
	scan->n = kept;
}

static bool is_any_named(const struct wfs_scan *scan, const char **names, size_t n)
{
	for (size_t i = 0; i < scan->n; i++) {
		const char *name = scan->files[i].name;

		if (bsearch(&name, names, n, sizeof(*names), compare_texts))
			return true;
	}
	return false;
}

static bool is_scanned(const struct wfs_scan *scan, const char *name)
{
	for (size_t i = 0; i < scan->n; i++)
		if (strcmp(scan->files[i].name, name) == 0)
			return true;
	return false;
}

/*
 * An index all of whose shards are gone says nothing (transformers leaves one beside
 * model.safetensors). The shards that it names may have any name, and then are not in the scan.
 */
static int follow_index(struct wfs_model *m, struct wfs_scan *scan)
{
	WFS_AUTO_FREE const char **names = NULL;
	size_t n;
	int err = named_shards(m, &names, &n);

	for (size_t i = 0; i < n && !err; i++) {
		struct wfs_shard_name parsed = { .is_index = false };
		struct wfs_attr a;

		if (is_scanned(scan, names[i]))
			continue;
		/* No scan for this base would show that it comes, or changes. */
		m->may_change = true;
		err = wfs_name_follow(m->store, m->dir, names[i], &a);
		if (!err)
			err = wfs_scan_add(scan, names[i], &a, &parsed);
		else if (wfs_follow_finds_nothing(err))
			err = 0;
	}
	if (err)
		return err;
	if (is_any_named(scan, names, n)) {
		keep_named(scan, names, n);
		if (scan->n < n)
			leave_out(m, "the index", "names shards that are not there");
		return 0;
	}
	wfs_shard_index_release(&m->index);
	m->has_index = false;
	return 0;
}

/* Of several sets ("of 2", "of 3") each has to be whole. */
static void count_shards(struct wfs_model *m, const struct wfs_scan *scan)
{
	for (size_t i = 0, end; i < scan->n; i = end) {
		uint32_t count = scan->files[i].parsed.count;

		for (end = i + 1; end < scan->n && scan->files[end].parsed.count == count; end++)
			;
		if (count && end - i < count)
			leave_out(m, scan->files[i].name, "shards are missing beside it");
	}
}

static int read_shards(struct wfs_model *m, const struct wfs_scan *scan)
{
	m->shards = calloc(scan->n + 1, sizeof(*m->shards));
	if (!m->shards)
		return -ENOMEM;
	for (size_t i = 0; i < scan->n; i++) {
		struct wfs_model_shard *shard = &m->shards[m->n_shards];
		int got = read_shard(m, &scan->files[i], shard);

		if (got <= 0) {
			release_shard(shard);
			memset(shard, 0, sizeof(*shard));
		}
		if (got < 0)
			return got;
		m->n_shards += got > 0;
	}
	return 0;
}

/* ---- the list of tensors ---- */

const struct wfs_model_shard *wfs_model_shard_of(const struct wfs_model *m, size_t i)
{
	return &m->shards[m->tensors[i].shard];
}

const struct wfs_safetensors_tensor *wfs_model_tensor(const struct wfs_model *m, size_t i)
{
	return &wfs_model_shard_of(m, i)->st.tensors[m->tensors[i].place];
}

static int compare_tensors(const void *a, const void *b, void *ctx)
{
	const struct wfs_model *m = ctx;
	uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
	const struct wfs_safetensors_tensor *s = wfs_model_tensor(m, x),
					    *t = wfs_model_tensor(m, y);
	int ret = wfs_compare_bytes(s->name, s->name_len, t->name, t->name_len);

	return ret ? ret : x < y ? -1 : x > y;
}

/* The shard that the index has for this name, or NULL. */
static const char *shard_in_index(const struct wfs_model *m, const struct wfs_safetensors_tensor *t)
{
	if (!m->has_index)
		return NULL;
	return json_string_value(json_object_getn(
		json_object_get(m->index.root, "weight_map"), t->name, t->name_len));
}

/* Of the numbers [first, end) in by_name, all of one name: which counts? */
static uint32_t choose_tensor(const struct wfs_model *m, size_t first, size_t end)
{
	const char *shard = shard_in_index(m, wfs_model_tensor(m, m->by_name[first]));

	for (size_t i = first; shard && i < end; i++)
		if (strcmp(wfs_model_shard_of(m, m->by_name[i])->name, shard) == 0)
			return m->by_name[i];
	return m->by_name[first];
}

/* Mark what does not count by its place, and close the gaps. */
static void drop_marked(struct wfs_model *m)
{
	size_t kept = 0;

	for (size_t i = 0; i < m->n; i++)
		if (m->tensors[i].place != UINT32_MAX)
			m->tensors[kept++] = m->tensors[i];
	m->n = kept;
}

static void sort_names(struct wfs_model *m)
{
	for (size_t i = 0; i < m->n; i++)
		m->by_name[i] = (uint32_t)i;
	if (m->n)
		qsort_r(m->by_name, m->n, sizeof(*m->by_name), compare_tensors, m);
}

static bool is_same_name(const struct wfs_model *m, uint32_t x, uint32_t y)
{
	const struct wfs_safetensors_tensor *s = wfs_model_tensor(m, x),
					    *t = wfs_model_tensor(m, y);

	return wfs_compare_bytes(s->name, s->name_len, t->name, t->name_len) == 0;
}

static int drop_doubles(struct wfs_model *m)
{
	WFS_AUTO_FREE bool *drop = calloc(m->n + 1, sizeof(*drop));
	bool any = false;

	if (!drop)
		return -ENOMEM;
	for (size_t i = 0, end; i < m->n; i = end) {
		uint32_t chosen;

		for (end = i + 1; end < m->n && is_same_name(m, m->by_name[i], m->by_name[end]);
			end++)
			;
		chosen = choose_tensor(m, i, end);
		for (size_t k = i; k < end; k++)
			drop[m->by_name[k]] = m->by_name[k] != chosen;
		any |= end - i > 1;
	}
	for (size_t i = 0; i < m->n; i++)
		if (drop[i])
			m->tensors[i].place = UINT32_MAX;
	drop_marked(m);
	if (any)
		sort_names(m);
	return 0;
}

/* Who may read something that is put together from all of them may read each. */
static void combine_attributes(struct wfs_model *m)
{
	if (m->n_shards)
		m->attr = m->shards[0].attr;
	for (size_t i = 1; i < m->n_shards; i++) {
		const struct wfs_attr *a = &m->shards[i].attr;

		m->attr.mode &= a->mode | S_IFMT;
		if (m->attr.uid != a->uid) {
			m->attr.uid = 0;
			m->attr.mode &= ~(uint32_t)S_IRWXU | S_IRUSR | S_IWUSR;
		}
		if (m->attr.gid != a->gid) {
			m->attr.gid = 0;
			m->attr.mode &= ~(uint32_t)S_IRWXG;
		}
	}
}

static int list_tensors(struct wfs_model *m)
{
	size_t n = 0, at = 0;

	for (size_t i = 0; i < m->n_shards; i++)
		n += m->shards[i].st.n_tensors;
	if (n >= UINT32_MAX)
		return -EFBIG;
	m->tensors = reallocarray(NULL, n + 1, sizeof(*m->tensors));
	m->by_name = reallocarray(NULL, n + 1, sizeof(*m->by_name));
	if (!m->tensors || !m->by_name)
		return -ENOMEM;
	for (size_t i = 0; i < m->n_shards; i++)
		for (size_t k = 0; k < m->shards[i].st.n_tensors; k++)
			m->tensors[at++] = (struct wfs_model_tensor){(uint32_t)i, (uint32_t)k};
	m->n = n;
	sort_names(m);
	return drop_doubles(m);
}

int wfs_model_find(const struct wfs_model *m, const char *name, size_t len, size_t *ret)
{
	size_t low = 0, high = m->n;

	while (low < high) {
		size_t mid = low + (high - low) / 2;
		const struct wfs_safetensors_tensor *t = wfs_model_tensor(m, m->by_name[mid]);
		int order = wfs_compare_bytes(name, len, t->name, t->name_len);

		if (order == 0) {
			*ret = m->by_name[mid];
			return 1;
		}
		if (order < 0)
			high = mid;
		else
			low = mid + 1;
	}
	return 0;
}

/* ---- the whole ---- */

struct wfs_model *wfs_model_ref(struct wfs_model *m)
{
	atomic_fetch_add(&m->refs, 1);
	return m;
}

void wfs_model_unref(struct wfs_model *m)
{
	if (!m || atomic_fetch_sub(&m->refs, 1) > 1)
		return;
	for (size_t i = 0; i < m->n_shards; i++)
		release_shard(&m->shards[i]);
	free(m->shards);
	free(m->tensors);
	free(m->by_name);
	if (m->has_index)
		wfs_shard_index_release(&m->index);
	wfs_model_files_free(m->files, m->n_files);
	wfs_cuts_free(m->cuts);
	pthread_mutex_destroy(&m->cut_lock);
	free(m->variant);
	free(m->base);
	free(m);
}

struct kept {
	struct wfs_model *model; /* a reference */
	uint64_t commits;	 /* of the store when it was last seen to be so */
	uint64_t used;
	unsigned idle; /* calls of wfs_model_tidy since, more where the store was changed */
};

struct wfs_models {
	pthread_mutex_t lock; /* a few instructions; nothing else is taken under it */
	uint64_t uses;
	struct kept kept[MODELS_KEPT];
	struct kept replaced[MODELS_KEPT]; /* not so any more, but somebody may just be on his way
					      to one */
	size_t next_replaced;
};

/* The same for the same shards with the same attributes, also when they are read again. */
static uint64_t serial_of(const struct wfs_model *m)
{
	struct wfs_hasher h;
	struct wfs_digest digest;
	uint64_t serial;

	wfs_hasher_init(&h, 128);
	wfs_hasher_update(&h, &m->dir, sizeof(m->dir));
	for (size_t i = 0; i < m->n_files; i++) {
		const struct wfs_attr *a = &m->files[i].attr;
		const uint64_t numbers[] = { a->ino, a->manifest, a->mode, a->uid, a->gid };

		wfs_hasher_update(&h, numbers, sizeof(numbers));
	}
	for (size_t i = 0; i < m->n_shards; i++)
		wfs_hasher_update(&h, &m->shards[i].content->manifest, sizeof(uint64_t));
	digest = wfs_hasher_final(&h);
	memcpy(&serial, digest.bytes, sizeof(serial));
	return serial | 1;
}

static struct wfs_model *new_model(struct wfs_store *s, uint64_t dir, const char *variant)
{
	struct wfs_model *m = calloc(1, sizeof(*m));

	if (!m)
		return NULL;
	atomic_init(&m->refs, 1);
	pthread_mutex_init(&m->cut_lock, NULL);
	m->store = s;
	m->dir = dir;
	if (variant && !(m->variant = strdup(variant))) {
		free(m);
		return NULL;
	}
	return m;
}

/* What was looked at is the model's, to be compared later. Shards under other names than usual are
 * in it, too. */
static int keep_files(struct wfs_model *m, const struct wfs_scan *scan)
{
	m->files = calloc(scan->n + 1, sizeof(*m->files));
	if (!m->files)
		return -ENOMEM;
	for (size_t i = 0; i < scan->n; i++) {
		m->files[i] = scan->files[i];
		m->files[i].name = strdup(scan->files[i].name);
		if (!m->files[i].name)
			return -ENOMEM;
		m->n_files++;
	}
	return 0;
}

static int load(struct wfs_model *m, struct wfs_scan *scan)
{
	struct wfs_err why = WFS_ERR_INIT;
	const char *base = wfs_scan_base(scan);
	int ret = keep_files(m, scan);

	if (ret)
		return ret;
	if (!base)
		leave_out(m, "the directory", "has shards of several names, none of them usual");
	m->base = strdup(base ? base : "model");
	if (!m->base)
		return -ENOMEM;
	wfs_scan_keep_base(scan, base ? m->base : NULL);
	if (scan->n && scan->files[scan->n - 1].parsed.is_index) {
		ret = read_index(m, &scan->files[--scan->n], &why);
		/* One that is being written, perhaps. */
		if (ret == -EBADMSG) {
			leave_out(m, scan->files[scan->n].name, why.text);
			ret = 1;
		}
		free(scan->files[scan->n].name);
		if (ret == 0)
			ret = follow_index(m, scan);
	}
	if (ret >= 0 && !m->has_index)
		count_shards(m, scan);
	if (ret >= 0)
		ret = read_shards(m, scan);
	combine_attributes(m);
	return ret ? ret : list_tensors(m);
}

/* ---- those that were read before ---- */

struct wfs_models *wfs_models_new(void)
{
	struct wfs_models *models = calloc(1, sizeof(*models));

	if (models)
		pthread_mutex_init(&models->lock, NULL);
	return models;
}

void wfs_models_clear(struct wfs_models *models)
{
	struct wfs_model *all[2 * MODELS_KEPT];

	if (!models)
		return;
	pthread_mutex_lock(&models->lock);
	for (size_t i = 0; i < MODELS_KEPT; i++) {
		all[2 * i] = models->kept[i].model;
		all[2 * i + 1] = models->replaced[i].model;
	}
	memset(models->kept, 0, sizeof(models->kept));
	memset(models->replaced, 0, sizeof(models->replaced));
	pthread_mutex_unlock(&models->lock);
	for (size_t i = 0; i < WFS_ARRAY_SIZE(all); i++)
		wfs_model_unref(all[i]);
}

void wfs_models_free(struct wfs_models *models)
{
	if (!models)
		return;
	wfs_models_clear(models);
	pthread_mutex_destroy(&models->lock);
	free(models);
}

static bool is_same_file(const struct wfs_model_file *a, const struct wfs_model_file *b)
{
	return strcmp(a->name, b->name) == 0 && a->attr.ino == b->attr.ino &&
	       a->attr.manifest == b->attr.manifest && !a->attr.data_file && !b->attr.data_file &&
	       a->attr.mode == b->attr.mode && a->attr.uid == b->attr.uid &&
	       a->attr.gid == b->attr.gid;
}

/* A shard that only an index names is not in the scan; such a model may change. */
static bool is_same_scan(const struct wfs_model *m, const struct wfs_scan *scan)
{
	if (m->may_change || m->n_files != scan->n)
		return false;
	for (size_t i = 0; i < scan->n; i++)
		if (!is_same_file(&m->files[i], &scan->files[i]))
			return false;
	return true;
}

/* Under lock: the place of this directory and variant, or NULL. */
static struct kept *find_kept(struct wfs_models *models, uint64_t dir, const char *variant)
{
	for (size_t i = 0; i < WFS_ARRAY_SIZE(models->kept); i++) {
		struct wfs_model *m = models->kept[i].model;

		if (m && m->dir == dir && wfs_is_same_text(m->variant, variant))
			return &models->kept[i];
	}
	return NULL;
}

static struct wfs_model *take_kept(
	struct wfs_models *models, uint64_t dir, const char *variant, uint64_t *ret_commits)
{
	struct wfs_model *m = NULL;
	struct kept *kept;

	pthread_mutex_lock(&models->lock);
	kept = find_kept(models, dir, variant);
	if (kept) {
		m = wfs_model_ref(kept->model);
		*ret_commits = kept->commits;
		kept->used = ++models->uses;
		kept->idle = 0;
	}
	pthread_mutex_unlock(&models->lock);
	return m;
}

static void keep(struct wfs_models *models, struct wfs_model *m, uint64_t commits)
{
	struct wfs_model *old = NULL;
	struct kept *kept;

	pthread_mutex_lock(&models->lock);
	kept = find_kept(models, m->dir, m->variant);
	if (!kept) {
		kept = &models->kept[0];
		for (size_t i = 1; i < WFS_ARRAY_SIZE(models->kept); i++)
			if (models->kept[i].used < kept->used)
				kept = &models->kept[i];
	}
	if (kept->model != m) {
		struct kept *place = &models->replaced[models->next_replaced++ % MODELS_KEPT];

		old = place->model;
		*place = (struct kept){.model = kept->model};
		kept->model = wfs_model_ref(m);
	}
	kept->commits = commits;
	kept->used = ++models->uses;
	kept->idle = 0;
	pthread_mutex_unlock(&models->lock);
	wfs_model_unref(old);
}

/* Look at the directory; `m` (taken over) is what it had when it was last looked at, or NULL. */
static int look(struct wfs_store *s, uint64_t dir, const char *variant, struct wfs_model *m,
	struct wfs_model **ret)
{
	struct wfs_scan scan;
	int err = wfs_scan_directory(s, dir, variant, &scan);

	if (err) {
		wfs_model_unref(m);
		return err;
	}
	if (!m || !is_same_scan(m, &scan)) {
		wfs_model_unref(m);
		m = new_model(s, dir, variant);
		err = m ? load(m, &scan) : -ENOMEM;
		if (!err)
			m->serial = serial_of(m);
	}
	wfs_model_files_free(scan.files, scan.n);
	if (err)
		wfs_model_unref(m);
	else
		*ret = m;
	return err;
}

int wfs_model_get(struct wfs_store *s, uint64_t dir, const char *variant, struct wfs_model **ret)
{
	uint64_t commits = wfs_store_commits(s), seen = 0;
	struct wfs_model *m = take_kept(s->models, dir, variant, &seen);
	int err = -EAGAIN;

	/* A shard that gets a writer is committed to be dirty. */
	if (m && seen == commits && !m->may_change) {
		*ret = m;
		return 0;
	}
	for (unsigned tries = 0; err == -EAGAIN && tries < MOST_LOOKS; tries++) {
		commits = wfs_store_commits(s);
		err = look(s, dir, variant, tries ? NULL : m, ret);
	}
	if (err)
		return err == -EAGAIN ? -EBUSY : err;
	keep(s->models, *ret, commits);
	return 0;
}

/* ---- tidying ---- */

/* One that is to go, taken out of its place; NULL: none. */
static struct wfs_model *take_idle(struct wfs_models *models)
{
	struct wfs_model *m = NULL;

	pthread_mutex_lock(&models->lock);
	for (size_t i = 0; i < WFS_ARRAY_SIZE(models->kept) && !m; i++) {
		struct kept *kept = &models->kept[i];

		if (kept->model && kept->idle >= TICKS_KEPT) {
			m = kept->model;
			*kept = (struct kept){.model = NULL};
		}
	}
	for (size_t i = 0; i < MODELS_KEPT && !m; i++) {
		struct kept *place = &models->replaced[i];

		if (place->model && place->idle >= TICKS_REPLACED) {
			m = place->model;
			*place = (struct kept){.model = NULL};
		}
	}
	pthread_mutex_unlock(&models->lock);
	return m;
}

static void count_idle(struct wfs_models *models, uint64_t commits)
{
	pthread_mutex_lock(&models->lock);
	for (size_t i = 0; i < WFS_ARRAY_SIZE(models->kept); i++) {
		struct kept *kept = &models->kept[i];

		/* Something was changed since: perhaps this. It is soon read again. */
		kept->idle += kept->commits != commits ? TICKS_CHANGED : 1;
		models->replaced[i].idle++;
	}
	pthread_mutex_unlock(&models->lock);
}

int wfs_model_get_serial(struct wfs_store *s, uint64_t serial, struct wfs_model **ret)
{
	struct wfs_models *models = s->models;
	struct wfs_model *found = NULL;

	pthread_mutex_lock(&models->lock);
	for (size_t i = 0; i < MODELS_KEPT && !found; i++) {
		struct wfs_model *kept = models->kept[i].model, *old = models->replaced[i].model;

		if (kept && kept->serial == serial)
			found = wfs_model_ref(kept);
		else if (old && old->serial == serial)
			found = wfs_model_ref(old);
	}
	pthread_mutex_unlock(&models->lock);
	*ret = found;
	return found != NULL;
}

void wfs_model_tidy(struct wfs_store *s)
{
	struct wfs_model *m;

	count_idle(s->models, wfs_store_commits(s));
	while ((m = take_idle(s->models)))
		wfs_model_unref(m);
}
