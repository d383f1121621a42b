#include <errno.h>
#include <unistd.h>

#include "fs/driver.h"
#include "fs/ioctl.h"
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

void wfs_op_ioctl(fuse_req_t req, fuse_ino_t ino, unsigned int cmd, void *arg,
	struct fuse_file_info *fi, unsigned int flags, const void *in, size_t in_size,
	size_t out_size)
{
	(void)arg;
	(void)in;
	(void)in_size;
	/* A directory's handle is another thing; isatty(3) asks every file. */
	if (flags & FUSE_IOCTL_DIR || cmd != WFS_IOC_REPACK ||
		out_size < sizeof(struct wfs_ioc_repack))
		fuse_reply_err(req, ENOTTY);
	else
		op_repack(req, ino, wfs_handle_of(fi));
}
