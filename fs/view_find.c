#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "fs/driver.h"
#include "lib/array.h"
#include "lib/model_write.h"
#include "lib/npy.h"
#include "lib/shard_name.h"
#include "lib/size_text.h"
#include "lib/store_time.h"

#define TENSORS WFS_VIEW_TENSORS_NAME
#define SHARDS WFS_VIEW_SHARDS_NAME
#define SINGLE "single" /* the name of the cut that has one shard */
#define NPY ".npy"
#define SAFETENSORS ".safetensors"
#define ENTRIES_AT_ONCE 512

void wfs_view_child_release(struct wfs_view_child *c)
{
	wfs_model_unref(c->model);
	c->model = NULL;
}

/* ---- attributes ---- */

/*
 * The mode is the one of the file or directory in the store, so that a copy can be changed; that
 * nothing can be written here the driver says.
 */
static void fill(struct wfs_view_child *c, const struct wfs_attr *a, mode_t mode, uint64_t size)
{
	wfs_fill_stat(a, &c->st);
	c->st.st_ino = wfs_view_st_ino(&c->key);
	c->st.st_mode = mode;
	c->st.st_nlink = S_ISDIR(mode) ? 2 : 1;
	c->st.st_size = (off_t)size;
	c->st.st_blocks = (blkcnt_t)((size + 511) / 512);
}

/* ---- names of tensors as names of files ---- */

static const char *suffix_of(enum wfs_tensor_form form)
{
	return form == WFS_TENSOR_NPY ? NPY : SAFETENSORS;
}

/* False: it would be longer than a file's name can be. '/' cannot be in one, NUL neither, and '%'
 * begins what stands for them. */
bool wfs_view_encode(const char *name, size_t len, enum wfs_tensor_form form, char *ret)
{
	const char *suffix = suffix_of(form);
	size_t n = 0;

	for (size_t i = 0; i < len; i++) {
		bool plain = name[i] != '/' && name[i] != '\0' && name[i] != '%';

		if (n + (plain ? 1 : 3) + strlen(suffix) > NAME_MAX)
			return false;
		if (plain)
			ret[n++] = name[i];
		else
			n += (size_t)sprintf(ret + n, "%%%02X", name[i]);
	}
	strcpy(ret + n, suffix);
	return true;
}

static bool ends_with(const char *name, size_t len, const char *suffix)
{
	return len >= strlen(suffix) &&
	       memcmp(name + len - strlen(suffix), suffix, strlen(suffix)) == 0;
}

/* What encode makes, back; any other '%' is itself. False: no name of a tensor's file. */
bool wfs_view_decode(const char *name, enum wfs_tensor_form *ret_form, char *ret, size_t *ret_len)
{
	static const struct {
		char text[4];
		char byte;
	} escapes[] = {
		{"%2F", '/'},
		{"%2f", '/'},
		{"%25", '%'},
		{"%00", '\0'},
	};
	size_t len = strlen(name), n = 0;

	if (len > NAME_MAX)
		return false;
	if (!ends_with(name, len, NPY) && !ends_with(name, len, SAFETENSORS))
		return false;
	*ret_form = ends_with(name, len, NPY) ? WFS_TENSOR_NPY : WFS_TENSOR_SAFETENSORS;
	len -= strlen(suffix_of(*ret_form));
	for (size_t i = 0; i < len;) {
		size_t k = 0;

		while (k < WFS_ARRAY_SIZE(escapes) &&
			(len - i < 3 || strncmp(name + i, escapes[k].text, 3) != 0))
			k++;
		ret[n++] = k < WFS_ARRAY_SIZE(escapes) ? escapes[k].byte : name[i];
		i += k < WFS_ARRAY_SIZE(escapes) ? 3 : 1;
	}
	*ret_len = n;
	return true;
}

static enum wfs_tensor_form natural_form(const struct wfs_safetensors_tensor *t)
{
	return wfs_npy_has_dtype(t->dtype) && t->ndim <= WFS_NPY_MAX_DIMS ? WFS_TENSOR_NPY
									  : WFS_TENSOR_SAFETENSORS;
}

/* ---- sizes ---- */

static bool parse_size(const char *text, uint64_t *ret)
{
	if (strcmp(text, SINGLE) == 0) {
		*ret = UINT64_MAX;
		return true;
	}
	return wfs_size_parse(text, ret) && *ret > 0;
}

/* The largest unit of which it is a whole number. */
static void size_text(uint64_t size, char *ret)
{
	static const struct {
		uint64_t bytes;
		const char *name;
	} units[] = {
		{UINT64_C(1000000000000), "TB"},
		{1000000000, "GB"},
		{1000000, "MB"},
		{1000, "KB"},
		{1, ""},
	};
	size_t i = 0;

	while (size % units[i].bytes != 0)
		i++;
	if (size == UINT64_MAX)
		strcpy(ret, SINGLE);
	else
		sprintf(ret, "%llu%s", (unsigned long long)(size / units[i].bytes), units[i].name);
}

/* ---- children by name ---- */

static int get_model(struct wfs_driver *d, const struct wfs_view_key *dir, struct wfs_model **ret)
{
	return wfs_model_get(d->store, dir->ino, dir->variant, ret);
}

/* With all that was put into it. */
static int get_settled_model(
	struct wfs_driver *d, const struct wfs_view_key *dir, struct wfs_model **ret)
{
	wfs_view_settle(d, dir->ino);
	return get_model(d, dir, ret);
}

/* Names and shapes are the shards': who may not read these sees no list of them either. */
static mode_t tensors_mode(struct wfs_driver *d, const struct wfs_view_key *key, const struct wfs_attr *dir)
{
	mode_t hidden = 0;
	struct wfs_model *m;

	if (get_model(d, key, &m) != 0)
		return dir->mode;
	if (m->n_shards && !(m->attr.mode & S_IROTH))
		hidden = S_IRWXO | (m->attr.uid != dir->uid ? S_IRWXU : 0);
	if (m->n_shards && (!(m->attr.mode & S_IRGRP) || m->attr.gid != dir->gid) && hidden)
		hidden |= S_IRWXG;
	wfs_model_unref(m);
	return dir->mode & ~hidden;
}

/* What stands behind ".tensors" or ".shards": "" or "@VARIANT". NULL: `name` is no view. */
static const char *suffix_of_view(
	const struct wfs_driver *d, const char *name, enum wfs_view_kind *ret_kind)
{
	const char *rest = NULL;

	if (d->options->views == WFS_VIEWS_OFF || strlen(name) > NAME_MAX)
		return NULL;
	if (strncmp(name, SHARDS, strlen(SHARDS)) == 0) {
		*ret_kind = WFS_VIEW_SHARDS;
		rest = name + strlen(SHARDS);
	} else if (strncmp(name, TENSORS, strlen(TENSORS)) == 0) {
		*ret_kind = WFS_VIEW_TENSORS;
		rest = name + strlen(TENSORS);
	}
	return rest && (!*rest || (*rest == '@' && rest[1])) ? rest : NULL;
}

bool wfs_view_is_reserved(const struct wfs_driver *d, const char *name)
{
	enum wfs_view_kind kind;

	return suffix_of_view(d, name, &kind) != NULL;
}

int wfs_view_find_root(
	struct wfs_driver *d, uint64_t dir, const char *name, struct wfs_view_child *ret)
{
	enum wfs_view_kind kind;
	const char *rest = suffix_of_view(d, name, &kind);
	struct wfs_attr a;
	int err;

	if (!rest)
		return 0;
	*ret = (struct wfs_view_child){.key = {.kind = kind, .ino = dir}};
	if (*rest) {
		snprintf(ret->text, sizeof(ret->text), "%s", rest + 1);
		ret->key.variant = ret->text;
	}
	err = wfs_name_getattr(d->store, dir, &a);
	if (err)
		return err;
	fill(ret, &a, kind == WFS_VIEW_SHARDS ? a.mode : tensors_mode(d, &ret->key, &a), 0);
	return 1;
}

int wfs_view_has_model(struct wfs_driver *d, uint64_t dir)
{
	struct wfs_view_key key = {.ino = dir};
	struct wfs_model *m;
	int err = get_model(d, &key, &m);

	if (err)
		return err;
	err = m->n_shards > 0;
	wfs_model_unref(m);
	return err;
}

/* The file of tensor number i. */
static int make_tensor(struct wfs_model *m, const struct wfs_view_key *parent, size_t i,
	enum wfs_tensor_form form, bool with_size, struct wfs_view_child *ret)
{
	const struct wfs_safetensors_tensor *t = wfs_model_tensor(m, i);
	const struct wfs_attr *a = &wfs_model_shard_of(m, i)->attr;
	struct wfs_content *content;
	uint64_t size = 0;

	if (with_size) {
		int err = wfs_model_tensor_file(m, i, form, &content);

		if (err)
			return err == -EOPNOTSUPP ? -ENOENT : err;
		size = content->size;
		wfs_content_unref(content);
	}
	ret->key = (struct wfs_view_key){.kind = WFS_VIEW_TENSOR,
		.form = form,
		.ino = parent->ino,
		.serial = m->serial,
		.variant = parent->variant,
		.name = t->name,
		.name_len = t->name_len};
	ret->model = wfs_model_ref(m);
	fill(ret, a, S_IFREG | (a->mode & 0666), size);
	return 0;
}

/* A file of the store stands under the name. */
static int make_real(struct wfs_driver *d, const struct wfs_view_key *parent, const char *name,
	uint64_t ino, struct wfs_view_child *ret)
{
	ret->key.ino = parent->ino;
	ret->key.variant = parent->variant;
	snprintf(ret->text, sizeof(ret->text), "%s", name);
	ret->real = ino;
	return wfs_name_getattr(d->store, ino, &ret->attr);
}

/* Is it written at the moment, or was it put and is not in the shards yet? 1: neither. */
static int find_written(struct wfs_driver *d, const struct wfs_view_key *parent, const char *name,
	int32_t tid, struct wfs_view_child *ret)
{
	char tensor[NAME_MAX + 1];
	struct wfs_model_name wanted = {parent->ino, parent->variant, tensor, 0};
	enum wfs_tensor_form form, put_form;
	uint64_t ino;
	int found;

	if (wfs_scratch_find(&d->scratches, parent->ino, parent->variant, name, tid, &ino))
		return make_real(d, parent, name, ino, ret);
	if (!wfs_view_decode(name, &form, tensor, &wanted.tensor_len))
		return 1;
	found = wfs_model_pending(d->store, &wanted, &ino, &put_form);
	if (found < 0 || found == WFS_PENDING_REMOVED)
		return found < 0 ? found : -ENOENT;
	if (found == WFS_PENDING_PUT && form == put_form)
		return make_real(d, parent, name, ino, ret);
	if (found == WFS_PENDING_PUT)
		wfs_view_settle(d, parent->ino);
	return 1;
}

static int find_tensor(struct wfs_driver *d, const struct wfs_view_key *parent, const char *name,
	int32_t tid, struct wfs_view_child *ret)
{
	char tensor[NAME_MAX + 1];
	enum wfs_tensor_form form;
	struct wfs_model *m;
	size_t len, i;
	int err;

	err = find_written(d, parent, name, tid, ret);
	if (err <= 0)
		return err;
	if (!wfs_view_decode(name, &form, tensor, &len))
		return -ENOENT;
	err = get_model(d, parent, &m);
	if (err)
		return err;
	err = wfs_model_find(m, tensor, len, &i) ? make_tensor(m, parent, i, form, true, ret)
						 : -ENOENT;
	wfs_model_unref(m);
	return err;
}

static int make_cut(struct wfs_driver *d, const struct wfs_view_key *parent, const char *name,
	uint64_t size, struct wfs_view_child *ret)
{
	struct wfs_attr a;
	int err = wfs_name_getattr(d->store, parent->ino, &a);

	snprintf(ret->text, sizeof(ret->text), "%s", name);
	/* A directory has one place in the tree: 1GB and 1000MB are two. */
	ret->key = (struct wfs_view_key){ .kind = WFS_VIEW_CUT, .ino = parent->ino, .size = size,
		.variant = parent->variant, .name = ret->text, .name_len = strlen(ret->text) };
	if (!err)
		fill(ret, &a, a.mode, 0);
	return err;
}

static int find_cut(struct wfs_driver *d, const struct wfs_view_key *parent, const char *name,
	struct wfs_view_child *ret)
{
	struct wfs_model *m;
	uint64_t size;
	int err;

	if (!parse_size(name, &size))
		return -ENOENT;
	err = get_settled_model(d, parent, &m);
	if (err)
		return err;
	err = m->n == 0 ? -ENOENT : m->left_out[0] ? -EBUSY : 0;
	wfs_model_unref(m);
	return err ? err : make_cut(d, parent, name, size, ret);
}

/* Something of the store, shown to be read alone. Links are what they lead to, where that is in the
 * store. */
static int make_mirror(struct wfs_driver *d, const struct wfs_view_key *parent, const char *name,
	struct wfs_view_child *ret)
{
	struct wfs_attr a;
	int err = wfs_name_follow(d->store, parent->ino, name, &a);

	if (err)
		return wfs_follow_finds_nothing(err) ? -ENOENT : err;
	if (!S_ISREG(a.mode) && !S_ISDIR(a.mode))
		return -ENOENT;
	/* A directory has one place in the tree: in another cut it is another. */
	ret->key = (struct wfs_view_key){ .ino = a.ino, .size = parent->size,
		.variant = parent->variant, .name = parent->name, .name_len = parent->name_len,
		.kind = S_ISDIR(a.mode) ? WFS_VIEW_MIRROR : WFS_VIEW_MIRROR_FILE };
	fill(ret, &a, a.mode, S_ISDIR(a.mode) ? 0 : a.size);
	return 0;
}

/* Is this one of the files that the cut has in another form? Also what is left of an older save. */
static bool is_replaced(const struct wfs_model *m, const char *name)
{
	struct wfs_shard_name parsed;

	for (size_t i = 0; i < m->n_shards; i++)
		if (strcmp(m->shards[i].name, name) == 0)
			return true;
	return wfs_shard_name_parse(name, &parsed) && wfs_shard_name_is_of(&parsed, m->base, m->variant);
}

static int get_cut(
	struct wfs_driver *d, struct wfs_model *m, uint64_t size, const struct wfs_cut **ret)
{
	struct wfs_err why = WFS_ERR_INIT;
	int err;

	/* A model that lacks shards would load, with random numbers for the rest. */
	if (m->left_out[0])
		err = wfs_err_set(&why, -EBUSY, "shards-left-out", WFS_NO_OFFSET, "%s", m->left_out);
	else
		err = wfs_model_cut(m, size, ret, &why);
	if (err && why.reason)
		wfs_log(&d->log, "inode %llu cannot be cut: %s: %s", (unsigned long long)m->dir,
			why.reason, why.text);
	return err == -ENODATA ? -ENOENT : err;
}

static void make_cut_file(struct wfs_model *m, const struct wfs_view_key *parent,
	const struct wfs_cut_file *file, struct wfs_view_child *ret)
{
	ret->key = (struct wfs_view_key){.kind = WFS_VIEW_CUT_FILE,
		.ino = parent->ino,
		.size = parent->size,
		.serial = m->serial,
		.variant = parent->variant,
		.name = file->name,
		.name_len = strlen(file->name)};
	ret->model = wfs_model_ref(m);
	fill(ret, &m->attr, m->attr.mode, file->content->size);
}

static int find_in_cut(struct wfs_driver *d, const struct wfs_view_key *parent, const char *name,
	struct wfs_view_child *ret)
{
	const struct wfs_cut_file *file;
	const struct wfs_cut *cut;
	struct wfs_model *m;
	int err = get_settled_model(d, parent, &m);

	if (err)
		return err;
	err = get_cut(d, m, parent->size, &cut);
	file = err ? NULL : wfs_cut_find(cut, name);
	if (file)
		make_cut_file(m, parent, file, ret);
	else if (!err)
		err = is_replaced(m, name) ? -ENOENT : make_mirror(d, parent, name, ret);
	wfs_model_unref(m);
	return err;
}

int wfs_view_find(struct wfs_driver *d, const struct wfs_view_key *parent, const char *name,
	int32_t tid, struct wfs_view_child *ret)
{
	*ret = (struct wfs_view_child){.model = NULL};
	if (strlen(name) > NAME_MAX)
		return -ENAMETOOLONG;
	switch (parent->kind) {
	case WFS_VIEW_TENSORS:
		return find_tensor(d, parent, name, tid, ret);
	case WFS_VIEW_SHARDS:
		return find_cut(d, parent, name, ret);
	case WFS_VIEW_CUT:
		return find_in_cut(d, parent, name, ret);
	case WFS_VIEW_MIRROR:
		return make_mirror(d, parent, name, ret);
	default:
		return -ENOTDIR;
	}
}

/* ---- listings ---- */

struct wfs_view_listing {
	struct wfs_view_key dir; /* borrowed from the node of the directory, which is open */
	struct wfs_model *model; /* TENSORS, CUT */
	const struct wfs_cut *cut;
	uint64_t *sizes; /* SHARDS */
	char **names;	 /* CUT, MIRROR: of what is mirrored */
	size_t n_sizes, n_names, room;
	uint64_t last;
	size_t seen;
	bool is_read; /* from its beginning */
};

static int add_name(void *ctx, const struct wfs_dirent *entry)
{
	struct wfs_view_listing *l = ctx;

	l->last = entry->id;
	l->seen++;
	if (l->model && is_replaced(l->model, entry->name))
		return 0;
	if (WFS_ARRAY_ROOM(l->names, l->n_names, l->room))
		return -ENOMEM;
	l->names[l->n_names] = strdup(entry->name);
	return l->names[l->n_names] ? (l->n_names++, 0) : -ENOMEM;
}

static int list_names(struct wfs_driver *d, struct wfs_view_listing *l)
{
	int err;

	do {
		l->seen = 0;
		err = wfs_name_readdir(
			d->store, l->dir.ino, l->last, ENTRIES_AT_ONCE, false, add_name, l);
	} while (err == 0 && l->seen == ENTRIES_AT_ONCE);
	return err;
}

static int fill_listing(struct wfs_driver *d, struct wfs_view_listing *l)
{
	enum wfs_view_kind kind = l->dir.kind;
	int err = 0;

	if (kind == WFS_VIEW_TENSORS || kind == WFS_VIEW_CUT || kind == WFS_VIEW_SHARDS)
		err = get_settled_model(d, &l->dir, &l->model);
	if (!err && kind == WFS_VIEW_CUT)
		err = get_cut(d, l->model, l->dir.size, &l->cut);
	if (!err && kind == WFS_VIEW_SHARDS && l->model->n > 0)
		err = wfs_view_sizes(&d->views, l->dir.ino, l->dir.variant, &l->sizes, &l->n_sizes);
	if (!err && (kind == WFS_VIEW_CUT || kind == WFS_VIEW_MIRROR))
		err = list_names(d, l);
	return err;
}

/* What it holds goes. */
static void clear_listing(struct wfs_view_listing *l)
{
	wfs_model_unref(l->model);
	for (size_t i = 0; i < l->n_names; i++)
		free(l->names[i]);
	free(l->names);
	free(l->sizes);
	*l = (struct wfs_view_listing){.dir = l->dir};
}

int wfs_view_list(
	struct wfs_driver *d, const struct wfs_view_key *dir, struct wfs_view_listing **ret)
{
	struct wfs_view_listing *l = calloc(1, sizeof(*l));
	int err;

	if (!l)
		return -ENOMEM;
	l->dir = *dir;
	err = fill_listing(d, l);
	if (err)
		wfs_view_listing_free(l);
	else
		*ret = l;
	return err;
}

int wfs_view_list_begin(struct wfs_driver *d, struct wfs_view_listing *l)
{
	struct wfs_view_listing now = {.dir = l->dir};
	int err = l->is_read ? fill_listing(d, &now) : 0;

	if (err) {
		clear_listing(&now);
	} else if (l->is_read) {
		clear_listing(l);
		*l = now;
	}
	l->is_read = true;
	return err;
}

void wfs_view_listing_free(struct wfs_view_listing *l)
{
	if (!l)
		return;
	clear_listing(l);
	free(l);
}

/* `single` is always there; the others are those that somebody looks at. */
static int size_entry(struct wfs_driver *d, struct wfs_view_listing *l, size_t i, char *name,
	struct wfs_view_child *ret)
{
	bool has_single = l->n_sizes && l->sizes[l->n_sizes - 1] == UINT64_MAX;
	uint64_t size;
	int err;

	if (l->model->n == 0 || i >= l->n_sizes + !has_single)
		return 0;
	size = i < l->n_sizes ? l->sizes[i] : UINT64_MAX;
	size_text(size, name);
	err = make_cut(d, &l->dir, name, size, ret);
	return err ? err : 1;
}

static int tensor_entry(struct wfs_view_listing *l, size_t i, bool with_size, char *name,
	struct wfs_view_child *ret)
{
	const struct wfs_safetensors_tensor *t;
	int err;

	if (i >= l->model->n)
		return 0;
	t = wfs_model_tensor(l->model, i);
	if (!wfs_view_encode(t->name, t->name_len, natural_form(t), name))
		return -ENOENT;
	err = make_tensor(l->model, &l->dir, i, natural_form(t), with_size, ret);
	return err ? err : 1;
}

static int mirror_entry(struct wfs_driver *d, struct wfs_view_listing *l, size_t i, char *name,
	struct wfs_view_child *ret)
{
	int err;

	if (l->cut && i < l->cut->n) {
		make_cut_file(l->model, &l->dir, &l->cut->files[i], ret);
		strcpy(name, l->cut->files[i].name);
		return 1;
	}
	i -= l->cut ? l->cut->n : 0;
	if (i >= l->n_names)
		return 0;
	strcpy(name, l->names[i]);
	err = make_mirror(d, &l->dir, name, ret);
	return err ? err : 1;
}

int wfs_view_entry(struct wfs_driver *d, struct wfs_view_listing *l, size_t i, bool with_size,
	char *name, struct wfs_view_child *ret)
{
	*ret = (struct wfs_view_child){.model = NULL};
	if (l->dir.kind == WFS_VIEW_TENSORS)
		return tensor_entry(l, i, with_size, name, ret);
	if (l->dir.kind == WFS_VIEW_SHARDS)
		return size_entry(d, l, i, name, ret);
	return mirror_entry(d, l, i, name, ret);
}

/* ---- bytes ---- */

static int content_of_model(struct wfs_driver *d, struct wfs_model *m,
	const struct wfs_view_key *key, struct wfs_content **ret)
{
	const struct wfs_cut_file *file;
	const struct wfs_cut *cut;
	size_t i;
	int err;

	if (m->serial != key->serial)
		return -ESTALE;
	if (key->kind == WFS_VIEW_TENSOR)
		return wfs_model_find(m, key->name, key->name_len, &i)
			       ? wfs_model_tensor_file(m, i, key->form, ret)
			       : -ESTALE;
	err = get_cut(d, m, key->size, &cut);
	if (err)
		return err;
	file = wfs_cut_find(cut, key->name);
	if (file)
		*ret = wfs_content_ref(file->content);
	return file ? 0 : -ESTALE;
}

int wfs_view_content(struct wfs_driver *d, const struct wfs_view_key *key, struct wfs_content **ret)
{
	struct wfs_model *m;
	int err = 0;

	if (!wfs_model_get_serial(d->store, key->serial, &m))
		err = get_settled_model(d, key, &m);
	if (err)
		return err == -ENOENT ? -ESTALE : err;
	err = content_of_model(d, m, key, ret);
	wfs_model_unref(m);
	return err;
}

int wfs_view_stat(struct wfs_driver *d, const struct wfs_view_node *node, struct stat *ret)
{
	struct wfs_view_child c = {.key = node->key};
	struct wfs_attr a;
	int err;

	if (node->key.kind == WFS_VIEW_TENSOR || node->key.kind == WFS_VIEW_CUT_FILE) {
		*ret = node->st;
		return 0;
	}
	err = wfs_name_getattr(d->store, node->key.ino, &a);
	if (err)
		return err;
	fill(&c, &a,
		node->key.kind == WFS_VIEW_TENSORS ? tensors_mode(d, &node->key, &a) : a.mode,
		S_ISDIR(a.mode) ? 0 : a.size);
	*ret = c.st;
	return 0;
}
