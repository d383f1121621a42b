#include <errno.h>
#include <string.h>
#include <sys/sysmacros.h>

#include "fs/driver.h"
#include "lib/gate.h"
#include "lib/quota.h"
#include "lib/shard_name.h"
#include "lib/store_time.h"

void wfs_fill_stat(const struct wfs_attr *a, struct stat *st)
{
	memset(st, 0, sizeof(*st));
	st->st_ino = a->ino;
	st->st_mode = a->mode;
	st->st_nlink = a->nlink;
	st->st_uid = a->uid;
	st->st_gid = a->gid;
	st->st_rdev = a->rdev;
	st->st_size = (off_t)a->size;
	st->st_blocks = (blkcnt_t)a->blocks;
	st->st_blksize = 4096;
	st->st_atim = wfs_timespec(a->atime_ns);
	st->st_mtim = wfs_timespec(a->mtime_ns);
	st->st_ctim = wfs_timespec(a->ctime_ns);
}

double wfs_attr_seconds(struct wfs_driver *d, const struct wfs_attr *a)
{
	return a->data_file && atomic_load(&d->passthrough.on) ? 0 : WFS_CACHE_SECONDS;
}

void wfs_fill_entry(struct wfs_driver *d, const struct wfs_attr *a, struct fuse_entry_param *e)
{
	memset(e, 0, sizeof(*e));
	e->ino = a->ino;
	e->generation = 1; /* inode numbers are never used again */
	e->attr_timeout = wfs_attr_seconds(d, a);
	e->entry_timeout = WFS_CACHE_SECONDS;
	wfs_fill_stat(a, &e->attr);
}

double wfs_entry_seconds(struct wfs_driver *d, const char *name)
{
	struct wfs_shard_name parsed;

	return d->options->views != WFS_VIEWS_OFF && wfs_shard_name_parse(name, &parsed) ? 0
											 : WFS_CACHE_SECONDS;
}

void wfs_reply_entry(fuse_req_t req, const struct wfs_attr *a, const char *name)
{
	struct wfs_driver *d = wfs_driver_of(req);
	struct fuse_entry_param e;
	uint64_t ino = a->ino;
	int err = wfs_inodes_lookup(&d->inodes, ino);

	if (err) {
		fuse_reply_err(req, -err);
		return;
	}
	wfs_fill_entry(d, a, &e);
	e.entry_timeout = wfs_entry_seconds(d, name);
	if (fuse_reply_entry(req, &e) == -ENOENT)
		wfs_forget(d, ino, 1);
}

void wfs_op_getattr(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	struct wfs_attr a;
	struct stat st;
	int err = wfs_name_getattr(wfs_driver_of(req)->store, ino, &a);

	(void)fi;
	if (err) {
		fuse_reply_err(req, -err);
		return;
	}
	wfs_fill_stat(&a, &st);
	fuse_reply_attr(req, &st, wfs_attr_seconds(wfs_driver_of(req), &a));
}

/* truncate(2) and ftruncate(2). A shard's verdict follows where no close will. */
static int set_size(struct wfs_driver *d, uint64_t ino, uint64_t size, struct wfs_handle *h)
{
	struct wfs_file *f;
	int tries = 0;
	int err = wfs_file_get(d->store, ino, &f);

	if (err)
		return err;
	wfs_file_open(f, true);
	do
		err = wfs_file_truncate(f, size);
	while (wfs_work_try_again(&d->work, err, &tries));
	if (!err && h)
		atomic_store(&h->wrote, true);
	else if (!err)
		wfs_gate_close(d->store, f, NULL);
	if (wfs_file_close(f, true))
		wfs_work_seal_later(&d->work, ino);
	wfs_file_unref(f);
	return err;
}

static unsigned what_to_set(int to_set)
{
	static const struct {
		int fuse;
		unsigned ours;
	} map[] = {
		{ FUSE_SET_ATTR_MODE, WFS_SET_MODE },
		{ FUSE_SET_ATTR_UID, WFS_SET_UID },
		{ FUSE_SET_ATTR_GID, WFS_SET_GID },
		{ FUSE_SET_ATTR_CTIME, WFS_SET_CTIME_NOW },
	};
	unsigned set = 0;

	for (size_t i = 0; i < WFS_ARRAY_SIZE(map); i++)
		if (to_set & map[i].fuse)
			set |= map[i].ours;
	/* The kernel sets both bits for "now". */
	if (to_set & FUSE_SET_ATTR_ATIME_NOW)
		set |= WFS_SET_ATIME_NOW;
	else if (to_set & FUSE_SET_ATTR_ATIME)
		set |= WFS_SET_ATIME;
	if (to_set & FUSE_SET_ATTR_MTIME_NOW)
		set |= WFS_SET_MTIME_NOW;
	else if (to_set & FUSE_SET_ATTR_MTIME)
		set |= WFS_SET_MTIME;
	return set;
}

void wfs_op_setattr(fuse_req_t req, fuse_ino_t ino, struct stat *attr, int to_set,
	struct fuse_file_info *fi)
{
	struct wfs_driver *d = wfs_driver_of(req);
	struct wfs_attr want = {
		.mode = attr->st_mode,
		.uid = attr->st_uid,
		.gid = attr->st_gid,
		.atime_ns = wfs_ns(&attr->st_atim),
		.mtime_ns = wfs_ns(&attr->st_mtim),
	};
	unsigned set = what_to_set(to_set);
	struct wfs_attr a;
	struct stat st;
	int err = 0;

	if (to_set & FUSE_SET_ATTR_SIZE && !fi)
		err = wfs_view_open_put(req, ino, -1);
	if (!err && to_set & FUSE_SET_ATTR_SIZE)
		err = set_size(d, ino, (uint64_t)attr->st_size, fi ? wfs_handle_of(fi) : NULL);
	if (!err)
		err = set ? wfs_name_setattr(d->store, ino, set, &want, &a)
			  : wfs_name_getattr(d->store, ino, &a);
	if (err) {
		fuse_reply_err(req, -err);
		return;
	}
	wfs_fill_stat(&a, &st);
	fuse_reply_attr(req, &st, wfs_attr_seconds(wfs_driver_of(req), &a));
}

void wfs_op_statfs(fuse_req_t req, fuse_ino_t ino)
{
	struct wfs_driver *d = wfs_driver_of(req);
	struct statvfs st;
	int ret = wfs_quota_statvfs(d->store, &st);

	(void)ino;
	if (ret) {
		fuse_reply_err(req, -ret);
		return;
	}
	st.f_namemax = WFS_NAME_MAX;
	fuse_reply_statfs(req, &st);
}
