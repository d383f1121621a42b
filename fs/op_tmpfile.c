/*
 * O_TMPFILE. The kernel sends FUSE_TMPFILE since Linux 6.2; libfuse passes it on
 * since 3.17. Before that the request is taken out of the stream here, and
 * answered in the kernel's own words (linux/fuse.h).
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <string.h>
#include <sys/uio.h>

#include "fs/driver.h"
#include "fs/order.h"
#include "fs/strict.h"

#define OPCODE_TMPFILE 51 /* FUSE_TMPFILE; the headers of Debian 12 do not have it */

static void reply(struct wfs_driver *d, uint64_t unique, int err, const void *body, size_t size)
{
	struct fuse_out_header out = { .unique = unique, .error = err };
	struct iovec iov[2] = { { &out, sizeof(out) }, { (void *)body, size } };
	ssize_t n;

	out.len = (uint32_t)(sizeof(out) + size);
	wfs_order_answer();
	/* ENOENT: the caller was interrupted and has gone. */
	do
		n = writev(fuse_session_fd(d->session), iov, size ? 2 : 1);
	while (n < 0 && errno == EINTR);
	wfs_strict_answer(n);
}

static int create(struct wfs_driver *d, const struct fuse_in_header *in,
	const struct fuse_create_in *arg, struct wfs_attr *a, struct wfs_handle **h)
{
	struct wfs_new new = {
		.mode = (arg->mode & 07777 & ~arg->umask) | S_IFREG,
		.uid = in->uid,
		.gid = in->gid,
	};
	int err = wfs_name_create_unnamed(d->store, in->nodeid, &new, a);

	if (!err)
		err = wfs_handle_new(d, a->ino, (int)(arg->flags & ~(uint32_t)O_TRUNC), h);
	if (err)
		return err;
	err = wfs_inodes_lookup(&d->inodes, a->ino);
	if (err)
		wfs_handle_free(d, *h);
	else
		wfs_inode_gone(d, a->ino); /* unless it is linked before the kernel forgets it */
	return err;
}

static void tmpfile_request(struct wfs_driver *d, const struct fuse_in_header *in,
	const struct fuse_create_in *arg)
{
	struct {
		struct fuse_entry_out entry;
		struct fuse_open_out open;
	} body;
	struct wfs_handle *h;
	struct wfs_attr a;
	int err = create(d, in, arg, &a, &h);

	if (err) {
		reply(d, in->unique, err, NULL, 0);
		return;
	}
	wfs_wire_entry(d, &a, &body.entry);
	wfs_wire_open(d, h, &body.open);
	reply(d, in->unique, 0, &body, sizeof(body));
}

bool wfs_try_tmpfile(struct wfs_driver *d, const void *request, size_t size)
{
	const struct fuse_in_header *in = request;

	if (size < sizeof(*in) || in->opcode != OPCODE_TMPFILE)
		return false;
	if (size < sizeof(*in) + sizeof(struct fuse_create_in))
		reply(d, in->unique, -EINVAL, NULL, 0);
	else
		tmpfile_request(d, in, (const struct fuse_create_in *)(in + 1));
	return true;
}
