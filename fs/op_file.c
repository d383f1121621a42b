#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <string.h>

#include "fs/driver.h"
#include "fs/order.h"
#include "lib/content.h"
#include "lib/flush.h"
#include "lib/damage.h"
#include "lib/gate.h"
#include "lib/repack.h"

/* The most that a reply to copy_file_range can count, in whole pages. */
#define COPY_REPLY_MAX (UINT32_MAX & ~4095u)

/* ---- handles ---- */

static bool wants_to_write(int flags)
{
	return (flags & O_ACCMODE) != O_RDONLY;
}

static void list_add(struct wfs_driver *d, struct wfs_handle *h)
{
	pthread_mutex_lock(&d->handles_lock);
	h->next = d->handles;
	h->link = &d->handles;
	if (h->next)
		h->next->link = &h->next;
	d->handles = h;
	pthread_mutex_unlock(&d->handles_lock);
}

static void list_remove(struct wfs_driver *d, struct wfs_handle *h)
{
	pthread_mutex_lock(&d->handles_lock);
	*h->link = h->next;
	if (h->next)
		h->next->link = h->link;
	pthread_mutex_unlock(&d->handles_lock);
}

void wfs_handles_free_all(struct wfs_driver *d)
{
	while (d->handles)
		wfs_handle_free(d, d->handles);
}

int wfs_handle_new(struct wfs_driver *d, uint64_t ino, int flags, struct wfs_handle **ret)
{
	struct wfs_handle *h = calloc(1, sizeof(*h));
	int err = h ? wfs_file_get(d->store, ino, &h->file) : -ENOMEM;

	if (err) {
		free(h);
		return err;
	}
	h->reads = (flags & O_ACCMODE) != O_WRONLY;
	h->writes = wants_to_write(flags) || flags & O_TRUNC;
	h->syncs = h->writes && flags & O_DSYNC; /* a part of O_SYNC, too */
	atomic_init(&h->wrote, false);
	list_add(d, h);
	wfs_file_open(h->file, h->writes);
	if (h->writes)
		err = wfs_flush_take_back(h->file);
	if (!err && flags & O_TRUNC) {
		err = wfs_file_truncate(h->file, 0);
		atomic_store(&h->wrote, true);
	}
	if (!err)
		err = wfs_io_open(d, h);
	/* Past the driver only the bytes go, each to the disk: what leads to them is there before the first. */
	if (!err && h->syncs)
		err = wfs_file_sync(h->file);
	if (err)
		wfs_handle_free(d, h);
	else
		*ret = h;
	return err;
}

/* Of what a program writes itself the data file tells. */
static void note_writes(struct wfs_handle *h)
{
	if (h->backing && h->writes && wfs_file_was_written(h->file))
		atomic_store(&h->wrote, true);
}

void wfs_handle_free(struct wfs_driver *d, struct wfs_handle *h)
{
	uint64_t ino = wfs_file_ino(h->file);
	bool wants_seal;

	list_remove(d, h);
	wfs_repack_end(h->repack);
	/* A mapping may have written after the last close(2): nobody is there to be told. */
	note_writes(h);
	if (atomic_load(&h->wrote))
		wfs_gate_close(d->store, h->file, NULL);
	if (h->is_scratch)
		wfs_view_released(d, h);
	wants_seal = wfs_io_close(d, h);
	if (wfs_file_close(h->file, h->writes) || wants_seal)
		wfs_work_seal_later(&d->work, ino);
	wfs_file_unref(h->file);
	free(h);
}

void wfs_log_verdict(struct wfs_driver *d, uint64_t ino, const char *what,
	const struct wfs_err *why)
{
	WFS_AUTO_FREE char *path = NULL;

	if (why->reason && wfs_name_path(d->store, ino, &path) == 0)
		wfs_log(&d->log, "%s: %s: %s: %s", what, path, why->reason, why->text);
}

/* ---- open and close ---- */

void wfs_op_open(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	struct wfs_driver *d = wfs_driver_of(req);
	struct fuse_open_out out;
	struct wfs_handle *h;
	int err = wfs_view_open_put(req, ino, fi->flags);

	if (!err)
		err = wfs_handle_new(d, ino, fi->flags, &h);
	if (err) {
		fuse_reply_err(req, -err);
		return;
	}
	wfs_view_opened(d, h);
	wfs_wire_open(d, h, &out);
	if (fuse_reply_buf(req, (const char *)&out, sizeof(out)) == -ENOENT) /* interrupted: no RELEASE will come */
		wfs_handle_free(d, h);
}

void wfs_op_create(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode,
	struct fuse_file_info *fi)
{
	struct wfs_driver *d = wfs_driver_of(req);
	struct wfs_new new = wfs_new_for(req, (mode & ~(mode_t)S_IFMT) | S_IFREG);
	struct {
		struct fuse_entry_out entry;
		struct fuse_open_out open;
	} out;
	/* Whoever makes a file counts as its writer: the last of them has it sealed. */
	int flags = (fi->flags & O_ACCMODE) == O_RDONLY ? O_RDWR : fi->flags & ~O_TRUNC;
	struct wfs_handle *h;
	struct wfs_attr a;
	int err, tries = 0;

	if (wfs_view_is_reserved(d, name)) {
		fuse_reply_err(req, EEXIST);
		return;
	}
	wfs_view_settle(d, parent);
	do
		err = wfs_name_create(d->store, parent, name, &new, &a);
	while (wfs_work_try_again(&d->work, err, &tries));
	if (!err)
		err = wfs_handle_new(d, a.ino, flags, &h);
	if (!err) {
		err = wfs_inodes_lookup(&d->inodes, a.ino);
		if (err)
			wfs_handle_free(d, h);
	}
	if (err) {
		fuse_reply_err(req, -err);
		return;
	}
	wfs_wire_new_entry(d, &a, &out.entry);
	out.entry.entry_valid = (uint64_t)wfs_entry_seconds(d, name);
	wfs_wire_open(d, h, &out.open);
	if (fuse_reply_buf(req, (const char *)&out, sizeof(out)) == -ENOENT) {
		wfs_handle_free(d, h);
		wfs_forget(d, a.ino, 1);
	}
}

void wfs_op_flush(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	struct wfs_driver *d = wfs_driver_of(req);
	struct wfs_handle *h = wfs_handle_of(fi);
	struct wfs_err why = WFS_ERR_INIT;
	int err = 0;

	note_writes(h);
	if (h->backing && h->writes && wfs_store_is_lost(d->store)) {
		err = -EIO; /* of what a program wrote itself it hears only here */
	} else if (atomic_load(&h->wrote)) {
		err = wfs_gate_close(d->store, h->file, &why);
		if (!err && h->is_scratch)
			err = wfs_view_flush(d, h);
		if (!err)
			atomic_store(&h->wrote, false);
	}
	if (!err && h->syncs)
		err = wfs_file_sync(h->file); /* and that it is there is known after a power cut */
	wfs_log_verdict(d, ino, err ? "close refused" : "closed", &why);
	fuse_reply_err(req, -err);
}

void wfs_op_release(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	(void)ino;
	wfs_handle_free(wfs_driver_of(req), wfs_handle_of(fi));
	fuse_reply_err(req, 0);
}

void wfs_op_fsync(fuse_req_t req, fuse_ino_t ino, int datasync, struct fuse_file_info *fi)
{
	(void)ino;
	(void)datasync;
	fuse_reply_err(req, -wfs_file_sync(wfs_handle_of(fi)->file));
}

/* ---- bytes ---- */

#define SPLICE_FROM 16384 /* bytes: of fewer a copy is made sooner */

/* One buffer for each thread that serves, for as long as it lives. */
static __thread struct {
	char *bytes;
} read_buffer;

static char *get_read_buffer(size_t size)
{
	if (!read_buffer.bytes)
		read_buffer.bytes = malloc(WFS_MAX_IO);
	return size <= WFS_MAX_IO ? read_buffer.bytes : NULL;
}

void wfs_thread_end(void)
{
	free(read_buffer.bytes);
	read_buffer.bytes = NULL;
}

/*
 * The bytes go from the page cache of the disk into the answer, with one copy. False: not
 * answered. Only one place at a time: libfuse 3.14 reads past its buffers where a
 * splice of several ends early.
 */
static bool reply_span(fuse_req_t req, struct wfs_content *c, size_t size, uint64_t offset)
{
	struct fuse_bufvec bufs = FUSE_BUFVEC_INIT(0);
	struct wfs_span span;

	if (wfs_span_begin(&span, c, offset, size) <= 0)
		return false;
	bufs.buf[0] = (struct fuse_buf){ .size = span.len, .fd = span.fd,
		.pos = (off_t)span.offset, .flags = FUSE_BUF_IS_FD | FUSE_BUF_FD_SEEK };
	fuse_reply_data(req, &bufs, 0);
	wfs_span_end(&span);
	return true;
}

void wfs_reply_content(fuse_req_t req, struct wfs_content *c, size_t size, uint64_t offset, bool is_direct)
{
	ssize_t n = -ENOMEM;
	char *buf;

	if (is_direct)
		size = WFS_MAX(wfs_content_sound(c, size, offset), 1);

	if (size >= SPLICE_FROM && reply_span(req, c, size, offset))
		return;
	buf = get_read_buffer(size);
	if (buf)
		n = wfs_content_read(c, buf, size, offset);
	if (n == -ENOENT)
		n = -EIO;
	if (n == -EIO)
		wfs_damage_read_failed(wfs_driver_of(req)->store, c, offset, size);
	if (n < 0)
		fuse_reply_err(req, (int)-n);
	else
		fuse_reply_buf(req, buf, (size_t)n);
}

void wfs_op_read(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off,
	struct fuse_file_info *fi)
{
	struct wfs_content *c = wfs_file_content(wfs_handle_of(fi)->file);

	(void)ino;
	wfs_reply_content(req, c, size, (uint64_t)off, fi->flags & O_DIRECT);
	wfs_content_unref(c);
}

void wfs_op_write(fuse_req_t req, fuse_ino_t ino, const char *buf, size_t size, off_t off,
	struct fuse_file_info *fi)
{
	struct wfs_driver *d = wfs_driver_of(req);
	struct wfs_handle *h = wfs_handle_of(fi);
	int tries = 0;
	ssize_t n;

	(void)ino;
	do
		n = wfs_file_write(h->file, buf, size, (uint64_t)off);
	while (wfs_work_try_again(&d->work, n, &tries));
	atomic_store(&h->wrote, true);
	if (n < 0)
		atomic_store(&h->failed, (int)n);
	if (n < 0)
		fuse_reply_err(req, (int)-n);
	else
		fuse_reply_write(req, (size_t)n);
}

void wfs_op_fallocate(fuse_req_t req, fuse_ino_t ino, int mode, off_t offset, off_t length,
	struct fuse_file_info *fi)
{
	struct wfs_driver *d = wfs_driver_of(req);
	struct wfs_handle *h = wfs_handle_of(fi);
	int err, tries = 0;

	(void)ino;
	atomic_store(&h->wrote, true);
	do
		err = wfs_file_fallocate(h->file, mode, (uint64_t)offset, (uint64_t)length);
	while (wfs_work_try_again(&d->work, err, &tries));
	fuse_reply_err(req, -err);
}

void wfs_op_lseek(fuse_req_t req, fuse_ino_t ino, off_t off, int whence, struct fuse_file_info *fi)
{
	int64_t found = wfs_file_seek(wfs_handle_of(fi)->file, (uint64_t)off, whence);

	(void)ino;
	if (found < 0)
		fuse_reply_err(req, (int)-found);
	else
		fuse_reply_lseek(req, found);
}

void wfs_op_copy_file_range(fuse_req_t req, fuse_ino_t ino_in, off_t off_in,
	struct fuse_file_info *fi_in, fuse_ino_t ino_out, off_t off_out,
	struct fuse_file_info *fi_out, size_t len, int flags)
{
	struct wfs_handle *in = wfs_handle_of(fi_in), *out = wfs_handle_of(fi_out);
	struct wfs_driver *d = wfs_driver_of(req);
	int tries = 0;
	ssize_t n;

	wfs_order_enter(ino_out);
	do
		n = wfs_file_copy(in->file, (uint64_t)off_in, out->file, (uint64_t)off_out, len);
	while (wfs_work_try_again(&d->work, n, &tries));
	(void)ino_in;
	(void)flags;
	if (n > 0)
		atomic_store(&out->wrote, true);
	wfs_order_leave(ino_out);
	if (n < 0) {
		fuse_reply_err(req, (int)-n);
		return;
	}
	/* A clone is whole at once, whatever is said here; the rest is asked for and is there. */
	fuse_reply_write(req, WFS_MIN((size_t)n, (size_t)COPY_REPLY_MAX));
}
