#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "fs/driver.h"
#include "fs/ioctl.h"
#include "lib/damage.h"
#include "lib/repack.h"

/* A second copy takes space: not everybody who may read a file may ask for it. */
static bool may_repack(struct wfs_driver *d, fuse_req_t req, uint64_t ino)
{
	uid_t uid = fuse_req_ctx(req)->uid;
	struct wfs_attr a;

	if (uid == 0 || uid == geteuid())
		return true;
	return wfs_name_getattr(d->store, ino, &a) == 0 && a.uid == uid;
}

/* One step; what it needs is kept in the handle until the next one. 0 or -errno. */
static int repack(struct wfs_driver *d, struct wfs_handle *h, struct wfs_ioc_repack *ret)
{
	struct wfs_repack_progress progress;
	int err = 1, tries = 0;

	if (!h->repack)
		err = wfs_repack_begin(h->file, &h->repack);
	if (err <= 0) {
		ret->state = WFS_IOC_REPACK_NOTHING;
		return err;
	}
	do
		err = wfs_repack_step(h->repack);
	while (wfs_work_try_again(&d->work, err, &tries));
	wfs_repack_get_progress(h->repack, &progress);
	*ret = (struct wfs_ioc_repack){ .done = progress.done, .total = progress.total,
		.copied = progress.copied,
		.state = err > 0 ? WFS_IOC_REPACK_MORE : WFS_IOC_REPACK_DONE };
	if (err <= 0) {
		wfs_repack_end(h->repack);
		h->repack = NULL;
	}
	return WFS_MIN(err, 0);
}

static void op_repack(fuse_req_t req, fuse_ino_t ino, struct wfs_handle *h)
{
	struct wfs_driver *d = wfs_driver_of(req);
	struct wfs_ioc_repack out = { 0 };
	int err = may_repack(d, req, ino) ? 0 : -EPERM;

	if (d->options->read_only)
		err = -EROFS;
	if (!err && atomic_exchange(&h->repacking, true))
		err = -EBUSY;
	if (!err) {
		err = repack(d, h, &out);
		atomic_store(&h->repacking, false);
	}
	if (err)
		fuse_reply_err(req, -err);
	else
		fuse_reply_ioctl(req, 0, &out, sizeof(out));
}

/* ---- damage ---- */

static int forget_pages(void *ctx, uint64_t ino, const char *reason, const char *text)
{
	struct wfs_driver *d = ctx;
	WFS_AUTO_FREE char *path = NULL;

	wfs_inodes_set_stale(&d->inodes, ino);
	wfs_notify_pages(&d->notify, ino);
	if (wfs_name_path(d->store, ino, &path) == 0)
		wfs_log(&d->log, "damaged: %s: %s: %s", path, reason, text);
	return 0;
}

static int note_damage(struct wfs_driver *d, struct wfs_ioc_damage *io)
{
	struct wfs_damage list[WFS_IOC_DAMAGE_MAX];
	size_t n = 0, changed = 0;
	int ret = 0;

	if (io->n > WFS_IOC_DAMAGE_MAX)
		return -EINVAL;
	io->changed = 0;
	for (size_t i = 0; i < io->n; i++) {
		if (io->list[i].reason > WFS_DAMAGE_MISSING)
			return -EINVAL;
		if (!io->list[i].copy_of)
			list[n++] = (struct wfs_damage){ .object = io->list[i].object,
				.data_file = io->list[i].data_file,
				.offset = io->list[i].offset,
				.good_file = io->list[i].good_file,
				.good_at = io->list[i].good_at,
				.reason = (enum wfs_damage_reason)io->list[i].reason };
	}
	/* What a copy has that is right moves there before that one is dropped for what is wrong. */
	ret = wfs_damage_set(d->store, list, n, &changed);
	for (size_t i = 0; i < io->n && ret >= 0; i++) {
		if (io->list[i].copy_of)
			ret = wfs_damage_drop_copy(d->store, io->list[i].copy_of,
				io->list[i].data_file);
		io->changed += ret > 0;
	}
	io->changed += (uint32_t)changed;
	if (io->changed)
		wfs_damage_reload(d->store);
	if (ret >= 0 && io->changed)
		ret = wfs_damage_each_file(d->store, forget_pages, d);
	return WFS_MIN(ret, 0);
}

static void op_damage(fuse_req_t req, const void *in, size_t in_size)
{
	struct wfs_driver *d = wfs_driver_of(req);
	uid_t uid = fuse_req_ctx(req)->uid;
	struct wfs_ioc_damage io;
	int err = uid == 0 || uid == geteuid() ? 0 : -EPERM;

	if (in_size < sizeof(io))
		err = -EINVAL;
	if (d->options->read_only)
		err = -EROFS;
	if (!err) {
		memcpy(&io, in, sizeof(io));
		err = note_damage(d, &io);
	}
	if (err)
		fuse_reply_err(req, -err);
	else
		fuse_reply_ioctl(req, 0, &io, sizeof(io));
}

void wfs_op_ioctl(fuse_req_t req, fuse_ino_t ino, unsigned int cmd, void *arg,
	struct fuse_file_info *fi, unsigned int flags, const void *in, size_t in_size,
	size_t out_size)
{
	(void)arg;
	/* A directory's handle is another thing; isatty(3) asks every file. */
	if (cmd == WFS_IOC_DAMAGE && flags & FUSE_IOCTL_DIR && out_size >= sizeof(struct wfs_ioc_damage))
		op_damage(req, in, in_size);
	else if (flags & FUSE_IOCTL_DIR || cmd != WFS_IOC_REPACK ||
		out_size < sizeof(struct wfs_ioc_repack))
		fuse_reply_err(req, ENOTTY);
	else
		op_repack(req, ino, wfs_handle_of(fi));
}
