#include <errno.h>
#include <string.h>
#include <sys/stat.h>

#include "fs/driver.h"
#include "lib/flush.h"
#include "lib/gate.h"

/* ---- the kernel's knowledge ---- */

void wfs_forget(struct wfs_driver *d, uint64_t ino, uint64_t n)
{
	if (wfs_is_view(ino))
		wfs_view_forget(&d->views, ino, n);
	else if (wfs_inodes_forget(&d->inodes, ino, n))
		wfs_work_drop(&d->work, ino);
}

void wfs_inode_gone(struct wfs_driver *d, uint64_t ino)
{
	if (wfs_inodes_set_gone(&d->inodes, ino, true))
		wfs_work_drop(&d->work, ino);
	else
		wfs_work_expect(&d->work);
}

void wfs_op_forget(fuse_req_t req, fuse_ino_t ino, uint64_t nlookup)
{
	wfs_forget(wfs_driver_of(req), ino, nlookup);
	fuse_reply_none(req);
}

void wfs_op_forget_multi(fuse_req_t req, size_t count, struct fuse_forget_data *forgets)
{
	for (size_t i = 0; i < count; i++)
		wfs_forget(wfs_driver_of(req), forgets[i].ino, forgets[i].nlookup);
	fuse_reply_none(req);
}

/* ---- finding ---- */

/* "." and ".." come from NFS and from open_by_handle_at, which know inodes without names. */
static int lookup(struct wfs_store *s, uint64_t parent, const char *name, struct wfs_attr *ret)
{
	int err;

	if (strcmp(name, ".") == 0)
		return wfs_name_getattr(s, parent, ret);
	if (strcmp(name, "..") != 0)
		return wfs_name_lookup(s, parent, name, ret);
	err = wfs_name_parent(s, parent, &parent);
	return err ? err : wfs_name_getattr(s, parent, ret);
}

void wfs_op_lookup(fuse_req_t req, fuse_ino_t parent, const char *name)
{
	struct wfs_driver *d = wfs_driver_of(req);
	struct fuse_entry_param none = { .entry_timeout = wfs_entry_seconds(d, name) };
	struct wfs_attr a;
	int err;

	if (none.entry_timeout == 0)
		wfs_view_settle(d, parent);
	err = lookup(d->store, parent, name, &a);
	if (!err)
		wfs_reply_entry(req, &a, name);
	else if (err == -ENOENT && wfs_view_try_lookup(req, parent, name))
		return;
	else if (err == -ENOENT)
		fuse_reply_entry(req, &none); /* ino 0: the kernel may remember that it is not there */
	else
		fuse_reply_err(req, -err);
}

void wfs_op_readlink(fuse_req_t req, fuse_ino_t ino)
{
	WFS_AUTO_FREE char *target = NULL;
	int err = wfs_name_readlink(wfs_driver_of(req)->store, ino, &target);

	if (err)
		fuse_reply_err(req, -err);
	else
		fuse_reply_readlink(req, target);
}

/* ---- making ---- */

struct wfs_new wfs_new_for(fuse_req_t req, mode_t mode)
{
	const struct fuse_ctx *ctx = fuse_req_ctx(req);

	return (struct wfs_new){ .mode = mode, .uid = ctx->uid, .gid = ctx->gid };
}

static void make(fuse_req_t req, fuse_ino_t parent, const char *name, const struct wfs_new *new)
{
	struct wfs_driver *d = wfs_driver_of(req);
	struct wfs_attr a;
	int err, tries = 0;

	if (wfs_view_is_reserved(d, name)) {
		fuse_reply_err(req, EEXIST);
		return;
	}
	wfs_view_settle(d, parent);
	do
		err = wfs_name_create(d->store, parent, name, new, &a);
	while (wfs_work_try_again(&d->work, err, &tries));
	if (err) {
		fuse_reply_err(req, -err);
		return;
	}
	wfs_reply_entry(req, &a, name);
}

void wfs_op_mknod(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode, dev_t rdev)
{
	struct wfs_new new = wfs_new_for(req, mode);

	new.rdev = rdev;
	new.sealed = true; /* nobody has it open to write to */
	make(req, parent, name, &new);
}

void wfs_op_mkdir(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode)
{
	struct wfs_new new = wfs_new_for(req, (mode & ~(mode_t)S_IFMT) | S_IFDIR);

	make(req, parent, name, &new);
}

void wfs_op_symlink(fuse_req_t req, const char *target, fuse_ino_t parent, const char *name)
{
	struct wfs_new new = wfs_new_for(req, S_IFLNK | 0777);

	new.target = target;
	make(req, parent, name, &new);
}

void wfs_op_link(fuse_req_t req, fuse_ino_t ino, fuse_ino_t newparent, const char *newname)
{
	struct wfs_driver *d = wfs_driver_of(req);
	struct wfs_tensor_place place = { .name = NULL };
	struct wfs_err why = WFS_ERR_INIT;
	struct wfs_attr a;
	int err;

	if (wfs_inodes_get_tensor(&d->inodes, ino, &place) != 0) {
		wfs_tensor_place_release(&place);
		fuse_reply_err(req, EXDEV); /* it is a file in .tensors alone */
		return;
	}
	if (wfs_view_is_reserved(d, newname)) {
		fuse_reply_err(req, EEXIST);
		return;
	}
	wfs_view_settle(d, newparent);
	err = wfs_gate_link(d->store, ino, newname, &why);
	if (err == -EBADMSG)
		wfs_log_verdict(d, ino, "link refused", &why);
	if (!err)
		err = wfs_name_link(d->store, ino, newparent, newname, &a);
	if (err) {
		fuse_reply_err(req, -err);
		return;
	}
	wfs_inodes_set_gone(&d->inodes, ino, false); /* it was, if it came from O_TMPFILE */
	wfs_reply_entry(req, &a, newname);
}

/* ---- removing ---- */

void wfs_op_unlink(fuse_req_t req, fuse_ino_t parent, const char *name)
{
	struct wfs_driver *d = wfs_driver_of(req);
	uint64_t ino;
	bool gone;
	int err;

	wfs_view_settle(d, parent);
	err = wfs_name_unlink(d->store, parent, name, &ino, &gone);
	if (!err && gone)
		wfs_inode_gone(d, ino);
	fuse_reply_err(req, -err);
}

/* A view goes with the last shard: `rm -r` lists it, and removes it last. 1: `name` is none. */
static int remove_view(struct wfs_driver *d, uint64_t parent, const char *name)
{
	struct wfs_view_child view = {.model = NULL};
	int found = wfs_view_find_root(d, parent, name, &view);

	wfs_view_child_release(&view);
	if (found <= 0)
		return found < 0 ? found : 1;
	wfs_view_settle(d, parent);
	found = wfs_view_has_model(d, parent);
	return found > 0 ? -ENOTEMPTY : found;
}

void wfs_op_rmdir(fuse_req_t req, fuse_ino_t parent, const char *name)
{
	struct wfs_driver *d = wfs_driver_of(req);
	struct wfs_attr a;
	uint64_t ino;
	int err = remove_view(d, parent, name);

	if (err <= 0) {
		fuse_reply_err(req, -err);
		return;
	}
	/* A directory is not empty as soon as a tensor was put into it. */
	if (wfs_name_lookup(d->store, parent, name, &a) == 0)
		wfs_view_settle(d, a.ino);
	err = wfs_name_rmdir(d->store, parent, name, &ino);
	if (!err)
		wfs_inode_gone(d, ino);
	fuse_reply_err(req, -err);
}

/* ---- rename ---- */

static void log_refused_rename(struct wfs_driver *d, uint64_t parent, const char *name,
	const struct wfs_err *why)
{
	struct wfs_attr a;

	if (wfs_name_lookup(d->store, parent, name, &a) == 0)
		wfs_log_verdict(d, a.ino, "rename refused", why);
}

/* What the kernel moved there it would keep for as long as under the old name. */
static void forget_moved(struct wfs_driver *d, fuse_ino_t parent, const char *name)
{
	if (wfs_entry_seconds(d, name) == 0)
		wfs_notify_name(&d->notify, parent, name);
}

void wfs_op_rename(fuse_req_t req, fuse_ino_t parent, const char *name, fuse_ino_t newparent,
	const char *newname, unsigned int flags)
{
	struct wfs_driver *d = wfs_driver_of(req);
	struct wfs_err why = WFS_ERR_INIT;
	struct wfs_renamed renamed;
	int err;

	if (wfs_view_is_reserved(d, newname)) {
		fuse_reply_err(req, EEXIST);
		return;
	}
	wfs_view_settle(d, parent);
	wfs_view_settle(d, newparent);
	err = wfs_gate_rename(d->store, parent, name, newparent, newname, flags, &why);
	if (err == -EBADMSG)
		log_refused_rename(d, parent, name, &why);
	if (!err)
		err = wfs_flush_for_rename(d->store, parent, name, newparent, newname, flags);
	if (!err)
		err = wfs_name_rename(d->store, parent, name, newparent, newname, flags, &renamed);
	if (!err && renamed.replaced_gone)
		wfs_inode_gone(d, renamed.replaced);
	if (!err)
		forget_moved(d, newparent, newname);
	if (!err && flags & RENAME_EXCHANGE)
		forget_moved(d, parent, name);
	fuse_reply_err(req, -err);
}
