#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>

#include "fs/driver.h"
#include "lib/content.h"
#include "lib/format.h"

#define XATTR_PREFIX "user.weightfs."

/* Offsets that readdir hands out: 1 behind ".", 2 behind "..", then the number of the entry and
 * this. */
#define OFFSET_BASE 3

/* One open(2) of a file of a view: one of the two. */
struct view_handle {
	struct wfs_content *content;
	struct wfs_file *file; /* MIRROR_FILE: as it is now */
};

static struct view_handle *handle_of(const struct fuse_file_info *fi)
{
	return (struct view_handle *)(uintptr_t)fi->fh;
}

/* ---- names ---- */

/* What a name leads to may be another inode at any time, but for what is there whatever the model
 * is. */
static double entry_seconds(enum wfs_view_kind kind)
{
	return kind == WFS_VIEW_TENSORS || kind == WFS_VIEW_SHARDS || kind == WFS_VIEW_CUT
		       ? WFS_CACHE_SECONDS
		       : 0;
}

static double attr_seconds(enum wfs_view_kind kind)
{
	return kind == WFS_VIEW_TENSOR || kind == WFS_VIEW_CUT_FILE ? WFS_CACHE_SECONDS : 0;
}

int wfs_view_fill_entry(
	struct wfs_driver *d, const struct wfs_view_child *c, struct fuse_entry_param *e)
{
	uint64_t ino;
	int err = wfs_view_intern(&d->views, &c->key, &c->st, &ino);

	if (err)
		return err;
	*e = (struct fuse_entry_param){.ino = ino,
		.generation = 1,
		.attr = c->st,
		.attr_timeout = attr_seconds(c->key.kind),
		.entry_timeout = entry_seconds(c->key.kind)};
	return 0;
}

void wfs_view_reply_real(fuse_req_t req, const struct wfs_attr *a, uint64_t dir,
	const char *variant, const char *name)
{
	struct wfs_driver *d = wfs_driver_of(req);
	struct fuse_entry_param e;
	int err = wfs_inodes_lookup(&d->inodes, a->ino);

	if (err) {
		fuse_reply_err(req, -err);
		return;
	}
	wfs_inodes_set_tensor(&d->inodes, a->ino, dir, variant, name);
	wfs_fill_entry(d, a, &e);
	e.entry_timeout = 0;
	e.attr.st_nlink = 1; /* what has no name in the store has one here */
	if (fuse_reply_entry(req, &e) == -ENOENT)
		wfs_forget(d, a->ino, 1);
}

static void reply_child(fuse_req_t req, int err, struct wfs_view_child *c)
{
	struct wfs_driver *d = wfs_driver_of(req);
	struct fuse_entry_param e;

	if (!err && c->real) {
		wfs_view_reply_real(req, &c->attr, c->key.ino, c->key.variant, c->text);
		return;
	}
	if (!err)
		err = wfs_view_fill_entry(d, c, &e);
	wfs_view_child_release(c);
	if (err)
		fuse_reply_err(req, -err);
	else if (fuse_reply_entry(req, &e) == -ENOENT)
		wfs_view_forget(&d->views, e.ino, 1);
}

bool wfs_view_try_lookup(fuse_req_t req, uint64_t dir, const char *name)
{
	struct wfs_view_child c;
	int found;

	if (name[0] != '.')
		return false;
	found = wfs_view_find_root(wfs_driver_of(req), dir, name, &c);
	if (found == 0)
		return false;
	if (found < 0)
		fuse_reply_err(req, -found);
	else
		reply_child(req, 0, &c);
	return true;
}

void wfs_view_op_lookup(fuse_req_t req, fuse_ino_t parent, const char *name)
{
	struct wfs_driver *d = wfs_driver_of(req);
	const struct wfs_view_node *node = wfs_view_node(&d->views, parent);
	struct wfs_view_child c = {.model = NULL};

	reply_child(req,
		node ? wfs_view_find(d, &node->key, name, fuse_req_ctx(req)->pid, &c) : -ESTALE,
		&c);
}

void wfs_view_op_getattr(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	struct wfs_driver *d = wfs_driver_of(req);
	const struct wfs_view_node *node = wfs_view_node(&d->views, ino);
	struct stat st;
	int err = node ? wfs_view_stat(d, node, &st) : -ESTALE;

	(void)fi;
	if (err)
		fuse_reply_err(req, -err);
	else
		fuse_reply_attr(req, &st, attr_seconds(node->key.kind));
}

/* Times and modes of a tensor's file are those of its shard: programs that copy them along are let
 * do it. */
void wfs_view_op_setattr(
	fuse_req_t req, fuse_ino_t ino, struct stat *attr, int to_set, struct fuse_file_info *fi)
{
	const struct wfs_view_node *node = wfs_view_node(&wfs_driver_of(req)->views, ino);
	bool is_tensor = node && node->key.kind == WFS_VIEW_TENSOR;
	bool is_tensors = node && node->key.kind == WFS_VIEW_TENSORS;

	const int owner = FUSE_SET_ATTR_UID | FUSE_SET_ATTR_GID;

	(void)attr;
	if ((is_tensor && !(to_set & (FUSE_SET_ATTR_SIZE | owner))) ||
		(is_tensors && !(to_set & FUSE_SET_ATTR_SIZE)))
		wfs_view_op_getattr(req, ino, fi);
	else
		fuse_reply_err(req, is_tensor ? EPERM : EROFS);
}

/* ---- files ---- */

static int open_bytes(struct wfs_driver *d, const struct wfs_view_node *node, struct view_handle *h)
{
	int err;

	if (node->key.kind != WFS_VIEW_MIRROR_FILE)
		return wfs_view_content(d, &node->key, &h->content);
	/* As if the kernel knew it: so it lives as long as it is open, whoever removes it. */
	err = wfs_inodes_lookup(&d->inodes, node->key.ino);
	if (err)
		return err;
	err = wfs_file_get(d->store, node->key.ino, &h->file);
	if (err)
		wfs_forget(d, node->key.ino, 1);
	else
		wfs_file_open(h->file, false);
	return err;
}

static void close_bytes(struct wfs_driver *d, struct view_handle *h)
{
	wfs_content_unref(h->content);
	if (h->file) {
		uint64_t ino = wfs_file_ino(h->file);

		if (wfs_file_close(h->file, false))
			wfs_work_seal_later(&d->work, ino);
		wfs_file_unref(h->file);
		wfs_forget(d, ino, 1);
	}
	free(h);
}

void wfs_view_op_open(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	struct wfs_driver *d = wfs_driver_of(req);
	const struct wfs_view_node *node = wfs_view_node(&d->views, ino);
	struct view_handle *h = NULL;
	int err = node ? 0 : -ESTALE;

	if (!err && ((fi->flags & O_ACCMODE) != O_RDONLY || fi->flags & O_TRUNC))
		err = node->key.kind == WFS_VIEW_TENSOR
			      ? wfs_view_open_to_write(req, &node->key, node->st.st_mode, fi->flags)
			      : -EROFS;
	if (!err)
		h = calloc(1, sizeof(*h));
	if (!err)
		err = h ? open_bytes(d, node, h) : -ENOMEM;
	if (err) {
		free(h);
		fuse_reply_err(req, -err);
		return;
	}
	fi->fh = (uintptr_t)h;
	fi->keep_cache =
		h->content != NULL; /* an inode's bytes never change, but those that are mirrored */
	fi->noflush = 1;
	if (fuse_reply_open(req, fi) == -ENOENT)
		close_bytes(d, h);
}

void wfs_view_op_release(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	(void)ino;
	close_bytes(wfs_driver_of(req), handle_of(fi));
	fuse_reply_err(req, 0);
}

void wfs_view_op_read(
	fuse_req_t req, fuse_ino_t ino, size_t size, off_t off, struct fuse_file_info *fi)
{
	struct view_handle *h = handle_of(fi);
	struct wfs_content *c = h->file ? wfs_file_content(h->file) : wfs_content_ref(h->content);

	(void)ino;
	wfs_reply_content(req, c, size, (uint64_t)off, fi->flags & O_DIRECT);
	wfs_content_unref(c);
}

void wfs_view_op_lseek(
	fuse_req_t req, fuse_ino_t ino, off_t off, int whence, struct fuse_file_info *fi)
{
	struct view_handle *h = handle_of(fi);
	int64_t found = h->file ? wfs_file_seek(h->file, (uint64_t)off, whence)
				: wfs_content_seek(h->content, (uint64_t)off, whence);

	(void)ino;
	if (found < 0)
		fuse_reply_err(req, (int)-found);
	else
		fuse_reply_lseek(req, found);
}

/* ---- directories ---- */

static struct wfs_view_listing *listing_of(const struct fuse_file_info *fi)
{
	return (struct wfs_view_listing *)(uintptr_t)fi->fh;
}

void wfs_view_op_opendir(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	struct wfs_driver *d = wfs_driver_of(req);
	const struct wfs_view_node *node = wfs_view_node(&d->views, ino);
	struct wfs_view_listing *l;
	int err = node ? wfs_view_list(d, &node->key, &l) : -ESTALE;

	if (err) {
		fuse_reply_err(req, -err);
		return;
	}
	fi->fh = (uintptr_t)l;
	if (fuse_reply_open(req, fi) == -ENOENT)
		wfs_view_listing_free(l);
}

void wfs_view_op_releasedir(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	(void)ino;
	wfs_view_listing_free(listing_of(fi));
	fuse_reply_err(req, 0);
}

/* A reply being filled. */
struct filling {
	fuse_req_t req;
	bool plus;
	char *buf;
	size_t size, used;
};

/* False: it does not fit. */
static bool put(struct filling *f, const char *name, const struct fuse_entry_param *e, off_t next)
{
	char *at = f->buf + f->used;
	size_t room = f->size - f->used;
	size_t need = f->plus ? fuse_add_direntry_plus(f->req, at, room, name, e, next)
			      : fuse_add_direntry(f->req, at, room, name, &e->attr, next);

	if (need > room)
		return false;
	f->used += need;
	return true;
}

/* 1: go on; 0: full. */
static int put_child(struct filling *f, struct wfs_driver *d, const struct wfs_view_child *c,
	const char *name, off_t next)
{
	struct fuse_entry_param e = {.attr = c->st};
	/* Counted before the kernel can know of it; given back if it does not fit. */
	int err = f->plus ? wfs_view_fill_entry(d, c, &e) : 0;

	if (err)
		return err;
	if (put(f, name, &e, next))
		return 1;
	if (f->plus)
		wfs_view_forget(&d->views, e.ino, 1);
	return 0;
}

static int put_children(
	struct filling *f, struct wfs_driver *d, struct wfs_view_listing *l, off_t off)
{
	char name[NAME_MAX + 1];
	int more = 1;

	for (size_t i = off > OFFSET_BASE - 1 ? (size_t)(off - OFFSET_BASE + 1) : 0; more > 0;
		i++) {
		struct wfs_view_child c;

		more = wfs_view_entry(d, l, i, f->plus, name, &c);
		if (more > 0)
			more = put_child(f, d, &c, name, (off_t)i + OFFSET_BASE);
		else if (more == -ENOENT)
			more = 1; /* one that has no file name, or is gone */
		wfs_view_child_release(&c);
	}
	return more;
}

static void read_directory(
	fuse_req_t req, uint64_t ino, size_t size, off_t off, struct wfs_view_listing *l, bool plus)
{
	WFS_AUTO_FREE char *buf = malloc(size);
	struct filling f = {.req = req, .plus = plus, .buf = buf, .size = size};
	struct wfs_driver *d = wfs_driver_of(req);
	const struct wfs_view_node *node = wfs_view_node(&d->views, ino);
	struct fuse_entry_param dot = {.attr = {.st_mode = S_IFDIR}};
	int err = buf && node ? 0 : -ENOMEM;

	if (!err && off == 0)
		err = wfs_view_list_begin(d, l);
	if (!err) {
		dot.attr.st_ino = node->st.st_ino;
		if ((off > 0 || put(&f, ".", &dot, 1)) && (off > 1 || put(&f, "..", &dot, 2)))
			err = put_children(&f, d, l, off);
	}
	/* An error behind entries that are counted comes again at the next call. */
	if (err && f.used == 0)
		fuse_reply_err(req, -err);
	else
		fuse_reply_buf(req, f.buf, f.used);
}

void wfs_view_op_readdir(
	fuse_req_t req, fuse_ino_t ino, size_t size, off_t off, struct fuse_file_info *fi)
{
	read_directory(req, ino, size, off, listing_of(fi), false);
}

void wfs_view_op_readdirplus(
	fuse_req_t req, fuse_ino_t ino, size_t size, off_t off, struct fuse_file_info *fi)
{
	read_directory(req, ino, size, off, listing_of(fi), true);
}

/* ---- extended attributes of tensors ---- */

static int shape_text(const struct wfs_model *m, size_t i, char **ret)
{
	WFS_AUTO_FREE uint64_t *shape = NULL;
	int err = wfs_model_shape(m, i, &shape);

	return err ? err : wfs_shape_text(shape, wfs_model_tensor(m, i)->ndim, ret);
}

static int tensor_xattr(const struct wfs_model *m, size_t i, const char *name, char **ret)
{
	char digest[40];
	int err = 0;

	if (strcmp(name, "shape") == 0)
		return shape_text(m, i, ret);
	if (strcmp(name, "dtype") == 0)
		*ret = strdup(wfs_dtype_name(wfs_model_tensor(m, i)->dtype));
	else if (strcmp(name, "shard") == 0)
		*ret = strdup(wfs_model_shard_of(m, i)->name);
	else if (strcmp(name, "digest") == 0)
		err = wfs_model_digest(m, i, digest) == 0 ? (*ret = strdup(digest), 0) : -ENODATA;
	else
		err = -ENODATA;
	return err ? err : *ret ? 0 : -ENOMEM;
}

/* What was left out of the model, and what was last refused there. */
static int directory_xattr(
	struct wfs_driver *d, const struct wfs_model *m, const char *name, char **ret)
{
	WFS_AUTO_FREE char *refused = NULL;
	int err;

	if (strcmp(name, "error") != 0)
		return -ENODATA;
	err = wfs_view_error(d, m->dir, m->variant, &refused);
	if (err && err != -ENODATA)
		return err;
	if (!refused && !m->left_out[0])
		return -ENODATA;
	*ret = wfs_format("%s%s%s", m->left_out, m->left_out[0] && refused ? "\n" : "",
		refused ? refused : "");
	return *ret ? 0 : -ENOMEM;
}

static int get_xattr(
	struct wfs_driver *d, const struct wfs_view_key *key, const char *name, char **ret)
{
	struct wfs_model *m;
	size_t i;
	int err;

	if (strncmp(name, XATTR_PREFIX, strlen(XATTR_PREFIX)) != 0 ||
		(key->kind != WFS_VIEW_TENSOR && key->kind != WFS_VIEW_TENSORS))
		return -ENODATA;
	name += strlen(XATTR_PREFIX);
	err = wfs_model_get(d->store, key->ino, key->variant, &m);
	if (err)
		return err == -ENOENT ? -ESTALE : -EIO;
	if (key->kind == WFS_VIEW_TENSORS)
		err = directory_xattr(d, m, name, ret);
	else
		err = wfs_model_find(m, key->name, key->name_len, &i)
			      ? tensor_xattr(m, i, name, ret)
			      : -ESTALE;
	wfs_model_unref(m);
	return err;
}

void wfs_view_op_getxattr(fuse_req_t req, fuse_ino_t ino, const char *name, size_t size)
{
	struct wfs_driver *d = wfs_driver_of(req);
	const struct wfs_view_node *node = wfs_view_node(&d->views, ino);
	WFS_AUTO_FREE char *value = NULL;
	int err = node ? get_xattr(d, &node->key, name, &value) : -ESTALE;

	wfs_reply_xattr(req, err, value, value ? strlen(value) : 0, size);
}

void wfs_view_op_listxattr(fuse_req_t req, fuse_ino_t ino, size_t size)
{
	static const char *const names[] = {"dtype", "shape", "digest", "shard", "error"};
	struct wfs_driver *d = wfs_driver_of(req);
	const struct wfs_view_node *node = wfs_view_node(&d->views, ino);
	char list[WFS_ARRAY_SIZE(names) * 32];
	size_t used = 0;

	for (size_t i = 0; node && i < WFS_ARRAY_SIZE(names); i++) {
		WFS_AUTO_FREE char *value = NULL;
		char name[32];
		int len = snprintf(name, sizeof(name), XATTR_PREFIX "%s", names[i]);

		if (get_xattr(d, &node->key, name, &value) != 0)
			continue;
		memcpy(list + used, name, (size_t)len + 1);
		used += (size_t)len + 1;
	}
	wfs_reply_xattr(req, 0, list, used, size);
}
