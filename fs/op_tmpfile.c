/*
 * O_TMPFILE. The kernel sends FUSE_TMPFILE since Linux 6.2; libfuse passes it on
 * since 3.17. Before that the request is taken out of the stream here, and
 * answered in the kernel's own words (linux/fuse.h).
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <string.h>
#include <sys/sysmacros.h>
#include <sys/uio.h>

#include "fs/driver.h"

#define OPCODE_TMPFILE 51 /* FUSE_TMPFILE; the headers of Debian 12 do not have it */

static void reply(struct wfs_driver *d, uint64_t unique, int err, const void *body, size_t size)
{
	struct fuse_out_header out = { .unique = unique, .error = err };
	struct iovec iov[2] = { { &out, sizeof(out) }, { (void *)body, size } };
	ssize_t n;

	out.len = (uint32_t)(sizeof(out) + size);
	/* ENOENT: the caller was interrupted and has gone. */
	do
		n = writev(fuse_session_fd(d->session), iov, size ? 2 : 1);
	while (n < 0 && errno == EINTR);
}

static void fill_attr(const struct wfs_attr *a, struct fuse_attr *out)
{
	struct timespec atime, mtime, ctime;
	struct stat st;

	wfs_fill_stat(a, &st);
	atime = st.st_atim;
	mtime = st.st_mtim;
	ctime = st.st_ctim;
	*out = (struct fuse_attr){
		.ino = a->ino,
		.size = a->size,
		.blocks = a->blocks,
		.atime = (uint64_t)atime.tv_sec,
		.mtime = (uint64_t)mtime.tv_sec,
		.ctime = (uint64_t)ctime.tv_sec,
		.atimensec = (uint32_t)atime.tv_nsec,
		.mtimensec = (uint32_t)mtime.tv_nsec,
		.ctimensec = (uint32_t)ctime.tv_nsec,
		.mode = a->mode,
		.nlink = a->nlink,
		.uid = a->uid,
		.gid = a->gid,
		.blksize = (uint32_t)st.st_blksize,
	};
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
	memset(&body, 0, sizeof(body));
	body.entry.nodeid = a.ino;
	body.entry.generation = 1;
	body.entry.attr_valid = (uint64_t)WFS_CACHE_SECONDS;
	body.entry.entry_valid = (uint64_t)WFS_CACHE_SECONDS;
	fill_attr(&a, &body.entry.attr);
	body.open.fh = (uintptr_t)h;
	body.open.open_flags = FOPEN_KEEP_CACHE;
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
