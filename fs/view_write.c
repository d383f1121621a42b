/* fs/view.h: tensors that are written, renamed, linked and removed in .tensors. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/fuse.h>
#include <stdio.h>
#include <string.h>

#include "fs/driver.h"
#include "lib/model_write.h"

#define COMES_MS 5000 /* for which what was opened to be written waits for the opener */

/* ---- after a change of a model ---- */

/* The kernel may still know them; then they are dropped when it forgets. */
static void give_up(struct wfs_driver *d, struct wfs_gone *gone)
{
	for (size_t i = 0; i < gone->n; i++)
		wfs_inode_gone(d, gone->inos[i]);
	free(gone->inos);
	*gone = (struct wfs_gone){.inos = NULL};
}

/* Its times are others; of its names the kernel asks each time (op_name.c). */
static void directory_changed(struct wfs_driver *d, uint64_t dir)
{
	fuse_lowlevel_notify_inval_inode(d->session, dir, -1, 0);
}

void wfs_view_settle(struct wfs_driver *d, uint64_t dir)
{
	struct wfs_gone gone = {.inos = NULL};
	struct wfs_err why = WFS_ERR_INIT;
	int err, tries = 0;

	if (!wfs_model_is_pending(d->store, dir))
		return;
	do {
		wfs_err_clear(&why);
		err = wfs_model_settle(d->store, dir, &gone, &why);
	} while (wfs_work_try_again(&d->work, err, &tries));
	if (err)
		wfs_log(&d->log, "tensors of inode %llu wait: %s", (unsigned long long)dir,
			why.reason ? why.text : strerror(-err));
	give_up(d, &gone);
	directory_changed(d, dir);
}

void wfs_view_settle_all(struct wfs_driver *d)
{
	struct wfs_gone gone = {.inos = NULL};
	int err = wfs_model_settle_all(d->store, &gone);

	if (err && err != -EBUSY)
		wfs_log(&d->log, "tensors wait: %s", strerror(-err));
	give_up(d, &gone);
}

int wfs_view_reshard(struct wfs_driver *d, uint64_t dir)
{
	struct wfs_gone gone = {.inos = NULL};
	struct wfs_err why = WFS_ERR_INIT;
	int err = wfs_model_reshard(d->store, dir, &gone, &why);

	if (err)
		wfs_log(&d->log, "the model of inode %llu is not cut again: %s",
			(unsigned long long)dir, why.reason ? why.text : strerror(-err));
	give_up(d, &gone);
	directory_changed(d, dir);
	return err;
}

void wfs_view_tidy(struct wfs_driver *d)
{
	uint64_t ino;

	while ((ino = wfs_scratch_take_old(&d->scratches)))
		wfs_inode_gone(d, ino);
}

/* ---- what was wrong ---- */

void wfs_view_errors_init(struct wfs_view_errors *e)
{
	memset(e, 0, sizeof(*e));
	pthread_mutex_init(&e->lock, NULL);
}

static void clear_error(struct wfs_view_errors *e, size_t i)
{
	free(e->list[i].variant);
	free(e->list[i].name);
	free(e->list[i].text);
	memset(&e->list[i], 0, sizeof(e->list[i]));
}

void wfs_view_errors_release(struct wfs_view_errors *e)
{
	for (size_t i = 0; i < WFS_ARRAY_SIZE(e->list); i++)
		clear_error(e, i);
	pthread_mutex_destroy(&e->lock);
}

/* `text` NULL: it went well. */
static void set_error(
	struct wfs_driver *d, uint64_t dir, const char *variant, const char *name, const char *text)
{
	struct wfs_view_errors *e = &d->view_errors;

	pthread_mutex_lock(&e->lock);
	for (size_t i = 0; i < WFS_ARRAY_SIZE(e->list); i++)
		if (e->list[i].text && e->list[i].dir == dir &&
			strcmp(e->list[i].name, name) == 0 &&
			wfs_is_same_text(e->list[i].variant, variant))
			clear_error(e, i);
	if (text) {
		size_t i = e->next++ % WFS_ARRAY_SIZE(e->list);

		clear_error(e, i);
		e->list[i].dir = dir;
		e->list[i].variant = variant ? strdup(variant) : NULL;
		e->list[i].name = strdup(name);
		e->list[i].text = e->list[i].name ? strdup(text) : NULL;
	}
	pthread_mutex_unlock(&e->lock);
}

/* One line for each name, the newest last. */
int wfs_view_error(struct wfs_driver *d, uint64_t dir, const char *variant, char **ret)
{
	struct wfs_view_errors *e = &d->view_errors;
	char *text = NULL;
	size_t len = 0;
	FILE *f = open_memstream(&text, &len);

	if (!f)
		return -ENOMEM;
	pthread_mutex_lock(&e->lock);
	for (size_t k = 0; k < WFS_ARRAY_SIZE(e->list); k++) {
		size_t i = (e->next + k) % WFS_ARRAY_SIZE(e->list);

		if (e->list[i].text && e->list[i].dir == dir &&
			wfs_is_same_text(e->list[i].variant, variant))
			fprintf(f, "%s%s: %s", ftell(f) > 0 ? "\n" : "", e->list[i].name,
				e->list[i].text);
	}
	pthread_mutex_unlock(&e->lock);
	if (fclose(f) != 0 || len == 0) {
		free(text);
		return -ENODATA;
	}
	*ret = text;
	return 0;
}

static void note_error(struct wfs_driver *d, const struct wfs_model_name *to, const char *name,
	const struct wfs_err *why)
{
	char text[400];

	if (!why->reason)
		return;
	if (why->offset == WFS_NO_OFFSET)
		snprintf(text, sizeof(text), "%s: %s", why->reason, why->text);
	else
		snprintf(text, sizeof(text), "%s: %s (at byte %llu)", why->reason, why->text,
			(unsigned long long)why->offset);
	for (char *p = text; *p; p++)
		if ((unsigned char)*p < 0x20 || *p == 0x7f)
			*p = '?';
	wfs_log(&d->log, "tensor refused: inode %llu: %s: %s", (unsigned long long)to->dir, name,
		text);
	set_error(d, to->dir, to->variant, name, text);
}

/* ---- putting ---- */

/*
 * File `ino` becomes what the name `name` in .tensors says. `begins`: -EINPROGRESS, and no complaint, where it
 * has a header alone.
 */
static int put_or_begin(
	struct wfs_driver *d, uint64_t dir, const char *variant, const char *name, uint64_t ino, bool begins)
{
	char tensor[NAME_MAX + 1];
	struct wfs_model_name to = {dir, variant, tensor, 0};
	struct wfs_gone gone = {.inos = NULL};
	struct wfs_err why = WFS_ERR_INIT;
	enum wfs_tensor_form form;
	int err;

	if (!wfs_view_decode(name, &form, tensor, &to.tensor_len))
		return -EINVAL;
	err = wfs_model_put(d->store, &to, form, ino, &gone, &why);
	if (err == -EINPROGRESS && !begins)
		err = -EBADMSG;
	if (err && err != -EINPROGRESS)
		note_error(d, &to, name, &why);
	else
		set_error(d, dir, variant, name, NULL);
	give_up(d, &gone);
	return err;
}

static int put(
	struct wfs_driver *d, uint64_t dir, const char *variant, const char *name, uint64_t ino)
{
	return put_or_begin(d, dir, variant, name, ino, false);
}

/* Whoever writes files for this tensor, but for `ino`, writes to what has no name any more. */
static void detach_others(
	struct wfs_driver *d, uint64_t dir, const char *variant, const char *name, uint64_t ino)
{
	char tensor[NAME_MAX + 1], other[NAME_MAX + 1];
	enum wfs_tensor_form form;
	uint64_t writer;
	size_t len;

	if (!wfs_view_decode(name, &form, tensor, &len))
		return;
	for (form = WFS_TENSOR_NPY; form <= WFS_TENSOR_SAFETENSORS; form++) {
		if (!wfs_view_encode(tensor, len, form, other))
			continue;
		while ((writer = wfs_scratch_take(&d->scratches, dir, variant, other, ino)))
			wfs_inode_gone(d, writer);
	}
}

static bool is_tensor_name(const char *name)
{
	char tensor[NAME_MAX + 1];
	enum wfs_tensor_form form;
	size_t len;

	return wfs_view_decode(name, &form, tensor, &len);
}

int wfs_view_flush(struct wfs_driver *d, struct wfs_handle *h)
{
	WFS_AUTO_FREE char *variant = NULL;
	WFS_AUTO_FREE char *name = NULL;
	uint64_t dir, ino = wfs_file_ino(h->file);
	int failed = atomic_load(&h->failed);
	int found = wfs_scratch_place(&d->scratches, ino, &dir, &variant, &name);

	if (found <= 0 || !is_tensor_name(name))
		return WFS_MIN(found, 0);
	/* A program that makes the file, and comes back to fill it (numpy.lib.format.open_memmap), opens it to read, too. */
	found = put_or_begin(d, dir, variant, name, ino, h->reads);
	if (found == 0)
		wfs_scratch_set_put(&d->scratches, ino);
	if (found == -EINPROGRESS) {
		wfs_scratch_set_begun(&d->scratches, ino, COMES_MS);
		return 0;
	}
	/* The kernel says that a file is released after its close has returned. */
	if (found < 0)
		wfs_scratch_set_refused(&d->scratches, ino);
	return found == -EBADMSG && failed ? failed : found;
}

void wfs_view_released(struct wfs_driver *d, struct wfs_handle *h)
{
	WFS_AUTO_FREE char *variant = NULL;
	WFS_AUTO_FREE char *name = NULL;
	uint64_t dir, ino = wfs_file_ino(h->file);

	if (wfs_scratch_place(&d->scratches, ino, &dir, &variant, &name) <= 0)
		return;
	if (wfs_scratch_close(&d->scratches, ino, is_tensor_name(name)))
		wfs_inode_gone(d, ino);
}

/* ---- opening ---- */

void wfs_view_opened(struct wfs_driver *d, struct wfs_handle *h)
{
	h->is_scratch = wfs_scratch_open(&d->scratches, wfs_file_ino(h->file));
}

/* The caller's; the directory's group where it says so. */
static struct wfs_new new_file(fuse_req_t req, mode_t mode)
{
	return wfs_new_for(req, (mode & 07777) | S_IFREG);
}

static int make_to_write(
	fuse_req_t req, const struct wfs_view_key *key, mode_t mode, int flags, uint64_t *ret)
{
	struct wfs_model_name name = {key->ino, key->variant, key->name, key->name_len};
	struct wfs_new new = new_file(req, mode);
	struct wfs_driver *d = wfs_driver_of(req);
	struct wfs_gone gone = {.inos = NULL};
	struct wfs_attr a;
	int err;

	if (!(flags & O_TRUNC)) {
		err = wfs_model_clone(d->store, &name, key->form, &new, ret, &gone, NULL);
		give_up(d, &gone);
		return err;
	}
	err = wfs_name_create_unnamed(d->store, key->ino, &new, &a);
	*ret = a.ino;
	return err;
}

int wfs_view_open_to_write(fuse_req_t req, const struct wfs_view_key *key, mode_t mode, int flags)
{
	struct wfs_driver *d = wfs_driver_of(req);
	char name[NAME_MAX + 1];
	uint64_t ino;
	int err;

	if (wfs_store_is_read_only(d->store))
		return -EROFS;
	if (!wfs_view_encode(key->name, key->name_len, key->form, name))
		return -ENAMETOOLONG;
	err = make_to_write(req, key, mode, flags, &ino);
	if (!err) {
		err = wfs_scratch_add_over(&d->scratches, key->ino, key->variant, name, ino,
			fuse_req_ctx(req)->pid, COMES_MS);
		if (err)
			wfs_inode_gone(d, ino);
	}
	return err ? err : -ESTALE; /* the kernel looks once more, and finds the new file */
}

/* The tensor of a place, as a key; `tensor` has NAME_MAX + 1 bytes. */
static bool key_of_place(
	const struct wfs_tensor_place *place, char *tensor, struct wfs_view_key *ret)
{
	*ret = (struct wfs_view_key){.kind = WFS_VIEW_TENSOR,
		.ino = place->dir,
		.variant = place->variant,
		.name = tensor};
	return wfs_view_decode(place->name, &ret->form, tensor, &ret->name_len);
}

int wfs_view_open_put(fuse_req_t req, uint64_t ino, int flags)
{
	struct wfs_driver *d = wfs_driver_of(req);
	struct wfs_tensor_place place;
	struct wfs_view_key key;
	char tensor[NAME_MAX + 1];
	struct wfs_attr a;
	int found;

	if (flags >= 0 && (flags & O_ACCMODE) == O_RDONLY && !(flags & O_TRUNC))
		return 0;
	found = wfs_inodes_get_tensor(&d->inodes, ino, &place);
	if (found <= 0)
		return found;
	/* Not put yet, or under a name of no tensor: it is a file like any other. */
	if (wfs_scratch_is_open(&d->scratches, ino) || !key_of_place(&place, tensor, &key)) {
		wfs_tensor_place_release(&place);
		return 0;
	}
	/* The model has it, as a file or already in a shard. */
	found = flags < 0 ? -EPERM : wfs_name_getattr(d->store, ino, &a);
	if (!found)
		found = wfs_view_open_to_write(req, &key, a.mode, flags);
	wfs_tensor_place_release(&place);
	return found;
}

/* ---- making ---- */

static int create(fuse_req_t req, const struct wfs_view_key *key, const char *name, mode_t mode,
	int flags, struct wfs_attr *ret, struct wfs_handle **ret_handle)
{
	struct wfs_driver *d = wfs_driver_of(req);
	struct wfs_new new = new_file(req, mode);
	int err = wfs_name_create_unnamed(d->store, key->ino, &new, ret);

	if (err)
		return err;
	err = wfs_scratch_add(&d->scratches, key->ino, key->variant, name, ret->ino);
	if (!err) {
		err = wfs_handle_new(d, ret->ino, flags, ret_handle);
		if (err)
			wfs_scratch_remove(&d->scratches, ret->ino);
	}
	if (!err) {
		(*ret_handle)->is_scratch = true;
		atomic_store(&(*ret_handle)->wrote, true); /* an empty file is refused, too */
		err = wfs_inodes_lookup(&d->inodes, ret->ino);
		if (err)
			wfs_handle_free(d, *ret_handle);
		else
			wfs_inodes_set_tensor(&d->inodes, ret->ino, key->ino, key->variant, name);
	}
	if (err)
		wfs_inode_gone(d, ret->ino);
	return err;
}

void wfs_view_op_create(
	fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode, struct fuse_file_info *fi)
{
	struct wfs_driver *d = wfs_driver_of(req);
	const struct wfs_view_node *node = wfs_view_node(&d->views, parent);
	int flags = (fi->flags & O_ACCMODE) == O_RDONLY ? O_RDWR : fi->flags & ~O_TRUNC;
	struct {
		struct fuse_entry_out entry;
		struct fuse_open_out open;
	} out;
	struct wfs_handle *h;
	struct wfs_attr a;
	int err = !node				      ? -ESTALE
		  : node->key.kind != WFS_VIEW_TENSORS ? -EROFS
		  : strlen(name) > NAME_MAX	      ? -ENAMETOOLONG
						      : 0;

	if (!err)
		err = create(req, &node->key, name, mode, flags, &a, &h);
	if (err) {
		fuse_reply_err(req, -err);
		return;
	}
	wfs_wire_new_entry(d, &a, &out.entry);
	out.entry.entry_valid = 0;
	out.entry.attr.nlink = 1;
	wfs_wire_open(d, h, &out.open);
	if (fuse_reply_buf(req, (const char *)&out, sizeof(out)) == -ENOENT) {
		wfs_handle_free(d, h);
		wfs_forget(d, a.ino, 1);
	}
}

/* ---- removing ---- */

void wfs_view_op_unlink(fuse_req_t req, fuse_ino_t parent, const char *name)
{
	struct wfs_driver *d = wfs_driver_of(req);
	const struct wfs_view_node *node = wfs_view_node(&d->views, parent);
	char tensor[NAME_MAX + 1];
	struct wfs_model_name which = {.tensor = tensor};
	struct wfs_gone gone = {.inos = NULL};
	enum wfs_tensor_form form;
	uint64_t ino;
	bool had = false;
	int err = !node ? -ESTALE : node->key.kind != WFS_VIEW_TENSORS ? -EROFS : 0;

	if (!err && wfs_scratch_find(&d->scratches, node->key.ino, node->key.variant, name, 0, &ino)) {
		had = true;
		wfs_scratch_remove(&d->scratches, ino);
		wfs_inode_gone(d, ino);
	}
	if (!err)
		detach_others(d, node->key.ino, node->key.variant, name, 0);
	if (!err && wfs_view_decode(name, &form, tensor, &which.tensor_len)) {
		which.dir = node->key.ino;
		which.variant = node->key.variant;
		err = wfs_model_remove(d->store, &which, &gone, NULL);
		give_up(d, &gone);
	} else if (!err) {
		err = -ENOENT;
	}
	fuse_reply_err(req, err == -ENOENT && had ? 0 : -err);
}

/* ---- other names ---- */

/* What was put and is in no shard yet is put under the other name as well. 1: done; 0: it does not wait. */
static int put_same(struct wfs_driver *d, const struct wfs_model_name *from,
	const struct wfs_view_key *to, const char *new_name, enum wfs_tensor_form form,
	uint64_t *ret_ino)
{
	enum wfs_tensor_form had;
	int found = wfs_model_pending(d->store, from, ret_ino, &had);

	if (found != WFS_PENDING_PUT || had != form)
		return WFS_MIN(found, 0);
	found = put(d, to->ino, to->variant, new_name, *ret_ino);
	return found ? found : 1;
}

/* A tensor under one name is to have another, too: a file of its bytes is put there. */
static int put_again(fuse_req_t req, const struct wfs_model_name *from,
	const struct wfs_view_key *to, const char *new_name, uint64_t *ret_ino)
{
	struct wfs_new new = new_file(req, 0644);
	struct wfs_driver *d = wfs_driver_of(req);
	struct wfs_gone gone = { .inos = NULL };
	char tensor[NAME_MAX + 1];
	enum wfs_tensor_form form;
	size_t len;
	int err;

	if (!wfs_view_decode(new_name, &form, tensor, &len))
		return -EINVAL; /* a name that is no tensor's */
	err = put_same(d, from, to, new_name, form, ret_ino);
	if (err == 0) {
		err = wfs_model_clone(d->store, from, form, &new, ret_ino, &gone, NULL);
		give_up(d, &gone);
		if (err)
			return err == -EOPNOTSUPP ? -EINVAL : err;
		err = put(d, to->ino, to->variant, new_name, *ret_ino);
		if (err)
			wfs_inode_gone(d, *ret_ino);
	}
	if (err >= 0)
		detach_others(d, to->ino, to->variant, new_name, *ret_ino);
	return WFS_MIN(err, 0);
}

/* A file that is written, or was written under a name of no tensor. */
static int rename_scratch(
	struct wfs_driver *d, uint64_t ino, const struct wfs_view_key *to, const char *new_name)
{
	uint64_t replaced;
	int err = is_tensor_name(new_name) ? put(d, to->ino, to->variant, new_name, ino) : 0;

	if (err)
		return err;
	err = wfs_scratch_rename(&d->scratches, ino, to->ino, to->variant, new_name, &replaced);
	if (replaced)
		wfs_inode_gone(d, replaced);
	if (!err && is_tensor_name(new_name)) {
		wfs_scratch_end_if_unused(&d->scratches, ino);
		detach_others(d, to->ino, to->variant, new_name, ino);
	}
	return err;
}

static int rename_tensor(fuse_req_t req, const struct wfs_view_key *from, const char *name,
	const struct wfs_view_key *to, const char *new_name)
{
	struct wfs_driver *d = wfs_driver_of(req);
	char tensor[NAME_MAX + 1], new_tensor[NAME_MAX + 1];
	struct wfs_model_name old = {from->ino, from->variant, tensor, 0};
	struct wfs_gone gone = {.inos = NULL};
	enum wfs_tensor_form form;
	size_t new_len;
	uint64_t ino, replaced;
	int err;

	if (!wfs_view_decode(name, &form, tensor, &old.tensor_len))
		return -ENOENT;
	if (!wfs_view_decode(new_name, &form, new_tensor, &new_len))
		return -EINVAL;
	if (from->ino == to->ino && wfs_is_same_text(from->variant, to->variant) &&
		new_len == old.tensor_len && memcmp(tensor, new_tensor, new_len) == 0)
		return 0;
	err = put_again(req, &old, to, new_name, &ino);
	/* Who still has the file open writes to it under its new name. */
	if (!err)
		wfs_scratch_rename(&d->scratches, ino, to->ino, to->variant, new_name, &replaced);
	if (!err)
		err = wfs_model_remove(d->store, &old, &gone, NULL);
	give_up(d, &gone);
	return err;
}

void wfs_view_op_rename(fuse_req_t req, fuse_ino_t parent, const char *name, fuse_ino_t newparent,
	const char *newname, unsigned int flags)
{
	struct wfs_driver *d = wfs_driver_of(req);
	const struct wfs_view_node *from =
		wfs_is_view(parent) ? wfs_view_node(&d->views, parent) : NULL;
	const struct wfs_view_node *to =
		wfs_is_view(newparent) ? wfs_view_node(&d->views, newparent) : NULL;
	struct wfs_view_child there = {.model = NULL};
	uint64_t ino;
	int err = 0;

	if (strlen(newname) > NAME_MAX)
		err = -ENAMETOOLONG;
	else if (!from || !to)
		err = -EXDEV; /* mv(1) copies then */
	else if (from->key.kind != WFS_VIEW_TENSORS || to->key.kind != WFS_VIEW_TENSORS)
		err = -EROFS;
	else if (flags & ~(unsigned)RENAME_NOREPLACE)
		err = -EINVAL;
	if (!err && flags & RENAME_NOREPLACE &&
		wfs_view_find(d, &to->key, newname, 0, &there) != -ENOENT)
		err = -EEXIST;
	wfs_view_child_release(&there);
	if (!err &&
		wfs_scratch_find(&d->scratches, from->key.ino, from->key.variant, name, 0, &ino))
		err = rename_scratch(d, ino, &to->key, newname);
	else if (!err)
		err = rename_tensor(req, &from->key, name, &to->key, newname);
	fuse_reply_err(req, -err);
}

void wfs_view_op_link(fuse_req_t req, fuse_ino_t ino, fuse_ino_t newparent, const char *newname)
{
	struct wfs_driver *d = wfs_driver_of(req);
	const struct wfs_view_node *to =
		wfs_is_view(newparent) ? wfs_view_node(&d->views, newparent) : NULL;
	const struct wfs_view_node *node = wfs_is_view(ino) ? wfs_view_node(&d->views, ino) : NULL;
	WFS_AUTO_FREE char *strings = NULL;
	struct wfs_model_name from;
	enum wfs_tensor_form form;
	struct wfs_attr a;
	uint64_t made;
	int err = !to ? -EXDEV : to->key.kind != WFS_VIEW_TENSORS ? -EROFS : 0;

	if (!err && node && node->key.kind == WFS_VIEW_TENSOR)
		from = (struct wfs_model_name){
			node->key.ino, node->key.variant, node->key.name, node->key.name_len};
	else if (!err &&
		 (node || wfs_model_pending_file(d->store, ino, &from, &form, &strings) <= 0))
		err = -EXDEV;
	if (!err)
		err = put_again(req, &from, &to->key, newname, &made);
	if (!err)
		err = wfs_name_getattr(d->store, made, &a);
	if (err)
		fuse_reply_err(req, -err);
	else
		wfs_view_reply_real(req, &a, to->key.ino, to->key.variant, newname);
}
