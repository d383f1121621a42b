#include <errno.h>
#include <string.h>

#include "fs/driver.h"

/* Offsets that readdir hands out: 1 behind ".", 2 behind "..", else the entry's id and this. */
#define OFFSET_BASE 2

/* Behind all ids: views (fs/view.h). */
#define OFFSET_VIEWS (INT64_MAX - 16)

#define ENTRIES_AT_ONCE 256

void wfs_op_opendir(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	(void)ino;
	fuse_reply_open(req, fi);
}

void wfs_op_releasedir(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	(void)ino;
	(void)fi;
	fuse_reply_err(req, 0);
}

void wfs_op_fsyncdir(fuse_req_t req, fuse_ino_t ino, int datasync, struct fuse_file_info *fi)
{
	(void)ino;
	(void)datasync;
	(void)fi;
	fuse_reply_err(req, -wfs_store_sync(wfs_driver_of(req)->store));
}

/* A reply being filled. */
struct filling {
	fuse_req_t req;
	bool plus;
	char *buf;
	size_t size, used;
	uint64_t last; /* id of the last entry that fitted */
	size_t seen;   /* entries that were offered */
	bool full;
};

/* False: it does not fit. */
static bool put(struct filling *f, const char *name, const struct fuse_entry_param *e, off_t next)
{
	char *at = f->buf + f->used;
	size_t room = f->size - f->used;
	size_t need = f->plus ? fuse_add_direntry_plus(f->req, at, room, name, e, next)
			      : fuse_add_direntry(f->req, at, room, name, &e->attr, next);

	if (need > room) {
		f->full = true;
		return false;
	}
	f->used += need;
	return true;
}

/* "." and ".." are not counted as lookups, even with their attributes. */
static int put_dots(struct filling *f, struct wfs_store *s, uint64_t dir, off_t off)
{
	struct fuse_entry_param e = { .attr.st_mode = S_IFDIR };
	uint64_t parent;
	int err;

	e.attr.st_ino = dir;
	if (off < 1 && !put(f, ".", &e, 1))
		return 0;
	err = wfs_name_parent(s, dir, &parent);
	if (err == -ENOENT) /* it was removed while open */
		parent = dir;
	else if (err)
		return err;
	e.attr.st_ino = parent;
	if (off < 2)
		put(f, "..", &e, 2);
	return 0;
}

static int put_entry(void *ctx, const struct wfs_dirent *entry)
{
	struct filling *f = ctx;
	struct wfs_driver *d = wfs_driver_of(f->req);
	struct fuse_entry_param e = { .attr = { .st_ino = entry->ino, .st_mode = entry->mode } };

	f->seen++;
	if (entry->id <= f->last || entry->id >= OFFSET_VIEWS - OFFSET_BASE)
		return -EUCLEAN; /* a listing that would not come to its end */
	if (f->plus) {
		/* Counted before the kernel can know of it; given back if it does not fit. */
		int err = wfs_inodes_lookup(&d->inodes, entry->ino);

		if (err)
			return err;
		wfs_fill_entry(d, &entry->attr, &e);
		e.entry_timeout = wfs_entry_seconds(d, entry->name);
	}
	if (!put(f, entry->name, &e, (off_t)(entry->id + OFFSET_BASE))) {
		if (f->plus)
			wfs_forget(d, entry->ino, 1);
		return 1;
	}
	f->last = entry->id;
	return 0;
}

/* Views, where they are to be listed: behind all else. */
static int put_views(struct filling *f, uint64_t dir, off_t off)
{
	static const char *const names[] = { WFS_VIEW_TENSORS_NAME, WFS_VIEW_SHARDS_NAME };
	struct wfs_driver *d = wfs_driver_of(f->req);
	int ret = d->options->views == WFS_VIEWS_LISTED ? wfs_view_has_model(d, dir) : 0;

	for (size_t i = 0; i < WFS_ARRAY_SIZE(names) && ret > 0; i++) {
		struct wfs_view_child c;
		struct fuse_entry_param e;

		if (off > OFFSET_VIEWS + (off_t)i)
			continue;
		ret = wfs_view_find_root(d, dir, names[i], &c);
		if (ret <= 0)
			break;
		e = (struct fuse_entry_param){ .attr = c.st };
		if (f->plus && wfs_view_fill_entry(d, &c, &e) != 0)
			return -ENOMEM;
		if (!put(f, names[i], &e, OFFSET_VIEWS + (off_t)i + 1) && f->plus)
			wfs_view_forget(&d->views, e.ino, 1);
		ret = !f->full;
	}
	return WFS_MIN(ret, 0);
}

static int fill(struct filling *f, struct wfs_store *s, uint64_t dir, off_t off)
{
	int ret = off < OFFSET_BASE ? put_dots(f, s, dir, off) : 0;

	f->last = off > OFFSET_BASE ? (uint64_t)off - OFFSET_BASE : 0;
	while (ret == 0 && !f->full) {
		f->seen = 0;
		ret = wfs_name_readdir(s, dir, f->last, ENTRIES_AT_ONCE, f->plus, put_entry, f);
		if (f->seen < ENTRIES_AT_ONCE)
			break;
	}
	if (ret >= 0 && !f->full)
		ret = put_views(f, dir, off);
	return ret < 0 ? ret : 0;
}

static void read_directory(fuse_req_t req, uint64_t ino, size_t size, off_t off, bool plus)
{
	struct wfs_driver *d = wfs_driver_of(req);
	WFS_AUTO_FREE char *buf = malloc(size);
	struct filling f = { .req = req, .plus = plus, .buf = buf, .size = size };
	int err;

	wfs_view_settle(d, ino);
	err = buf ? fill(&f, d->store, ino, off) : -ENOMEM;

	/* An error behind entries that are counted comes again at the next call. */
	if (err && f.used == 0)
		fuse_reply_err(req, -err);
	else
		fuse_reply_buf(req, f.buf, f.used);
}

void wfs_op_readdir(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off,
	struct fuse_file_info *fi)
{
	(void)fi;
	read_directory(req, ino, size, off, false);
}

void wfs_op_readdirplus(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off,
	struct fuse_file_info *fi)
{
	(void)fi;
	read_directory(req, ino, size, off, true);
}
