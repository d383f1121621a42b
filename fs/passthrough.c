#include "fs/passthrough.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <linux/magic.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/uio.h>
#include <sys/vfs.h>
#include <sys/utsname.h>

#include "lib/format.h"

#include "fs/driver.h"
#include "fs/order.h"
#include "fs/strict.h"

/* ---- the kernel's words that the headers of Debian 12 do not have ---- */

#define BIT_INIT_EXT (UINT32_C(1) << 30)
#define BIT2_PASSTHROUGH (UINT32_C(1) << (37 - 32))
#define STACK_DEPTH 1 /* the disk below is no stacked file system itself */

/* struct fuse_init_in and fuse_init_out of protocol 7.40, as far as it matters here. */
struct init_in {
	uint32_t major, minor, max_readahead, flags, flags2;
};

struct init_out {
	uint32_t major, minor, max_readahead, flags;
	uint16_t max_background, congestion_threshold;
	uint32_t max_write, time_gran;
	uint16_t max_pages, map_alignment;
	uint32_t flags2, max_stack_depth;
	uint32_t unused[6];
};

struct backing_map {
	int32_t fd;
	uint32_t flags;
	uint64_t padding;
};

#define IOC_BACKING_OPEN _IOW(229, 1, struct backing_map)
#define IOC_BACKING_CLOSE _IOW(229, 2, uint32_t)

/* The id (> 0) or -errno. */
static int register_fd(struct wfs_driver *d, int fd)
{
	struct backing_map map = { .fd = fd };
	int id = ioctl(fuse_session_fd(d->session), IOC_BACKING_OPEN, &map);

	return id < 0 ? -errno : id;
}

static void unregister(struct wfs_driver *d, int32_t id)
{
	uint32_t backing = (uint32_t)id;

	if (ioctl(fuse_session_fd(d->session), IOC_BACKING_CLOSE, &backing) != 0)
		wfs_log(&d->log, "passthrough: backing file %u: %s", backing, strerror(errno));
}

/* ---- INIT ---- */

/*
 * libfuse says it to the kernel since 3.17; before, its answer is patched on the way out.
 * Registrations are ours with either: libfuse's own hides why one fails, and wants a request
 * to close it, where a handle that ends with the mount has none.
 */
#define LIBFUSE_KNOWS (FUSE_VERSION >= FUSE_MAKE_VERSION(3, 17))

void wfs_passthrough_init(struct wfs_passthrough *p)
{
	atomic_init(&p->on, false);
	for (size_t i = 0; i < WFS_IO_STRIPES; i++)
		pthread_mutex_init(&p->stripes[i].lock, NULL);
}

void wfs_passthrough_release(struct wfs_passthrough *p)
{
	for (size_t i = 0; i < WFS_IO_STRIPES; i++)
		pthread_mutex_destroy(&p->stripes[i].lock);
}

static void say_why_not(struct wfs_passthrough *p, const char *fmt, ...) WFS_PRINTF(2, 3);

static void say_why_not(struct wfs_passthrough *p, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(p->why_not, sizeof(p->why_not), fmt, ap);
	va_end(ap);
}

#if LIBFUSE_KNOWS

void wfs_passthrough_want(struct wfs_driver *d, struct fuse_conn_info *conn)
{
	if (d->passthrough.why_not[0] || !(conn->capable & FUSE_CAP_PASSTHROUGH))
		return;
	conn->want |= (unsigned)FUSE_CAP_PASSTHROUGH;
	conn->max_backing_stack_depth = STACK_DEPTH;
}

static void patch_init(struct wfs_passthrough *p, const struct iovec *iov, int count)
{
	(void)p;
	(void)iov;
	(void)count;
}

#else

void wfs_passthrough_want(struct wfs_driver *d, struct fuse_conn_info *conn)
{
	(void)d;
	(void)conn;
}

/* libfuse's answer to INIT, with passthrough added. */
static void patch_init(struct wfs_passthrough *p, const struct iovec *iov, int count)
{
	const struct fuse_out_header *head = iov[0].iov_base;
	uint64_t unique = atomic_load(&p->init_unique);
	struct init_out *out;

	if (!unique || head->unique != unique || head->error != 0)
		return;
	if (count < 2 || iov[1].iov_len < offsetof(struct init_out, unused))
		return;
	out = iov[1].iov_base;
	out->flags |= BIT_INIT_EXT;
	out->flags2 |= BIT2_PASSTHROUGH;
	out->max_stack_depth = STACK_DEPTH;
}

#endif

static ssize_t io_writev(int fd, struct iovec *iov, int count, void *userdata)
{
	ssize_t n;

	patch_init(&((struct wfs_driver *)userdata)->passthrough, iov, count);
	wfs_order_answer();
	n = writev(fd, iov, count);
	wfs_strict_answer(n);
	return n;
}

static ssize_t io_read(int fd, void *buf, size_t len, void *userdata)
{
	(void)userdata;
	return read(fd, buf, len);
}

static ssize_t io_splice(int from, off_t *from_offset, int to, off_t *to_offset, size_t len,
	unsigned flags, void *userdata)
{
	(void)userdata;
	wfs_order_answer();
	return splice(from, from_offset, to, to_offset, len, flags);
}

static int take_over_answers(struct wfs_driver *d)
{
	static const struct fuse_custom_io io = { .writev = io_writev, .read = io_read,
		.splice_send = io_splice };

	return fuse_session_custom_io(d->session, &io, fuse_session_fd(d->session));
}

void wfs_passthrough_prepare(struct wfs_driver *d)
{
	int ret = !LIBFUSE_KNOWS || WFS_ORDER_IS_TOLD ? take_over_answers(d) : 0;

	if (d->options->passthrough == WFS_PASSTHROUGH_OFF)
		say_why_not(&d->passthrough, "switched off by -o passthrough=off");
	else if (ret)
		say_why_not(&d->passthrough, "this libfuse lets nobody answer for it");
}

bool wfs_passthrough_look(struct wfs_driver *d, const void *request, size_t size)
{
	const struct fuse_in_header *in = request;
	struct wfs_passthrough *p = &d->passthrough;
	const struct init_in *init = (const struct init_in *)(in + 1);
	struct utsname kernel;

	if (size < sizeof(*in) || in->opcode != FUSE_INIT)
		return false;
	if (p->why_not[0])
		return true;
	if (size < sizeof(*in) + sizeof(*init) || !(init->flags & BIT_INIT_EXT) ||
		!(init->flags2 & BIT2_PASSTHROUGH)) {
		uname(&kernel);
		say_why_not(p, "Linux %s does not offer it (6.9 and newer do)", kernel.release);
	} else {
		atomic_store(&p->init_unique, in->unique);
	}
	return true;
}

static void explain(struct wfs_passthrough *p, int err)
{
	if (err == -EPERM)
		say_why_not(p, "the driver may not (it needs CAP_SYS_ADMIN: a mount by root)");
	else if (err == -ELOOP)
		say_why_not(p, "the store lies on a stacked file system (overlayfs, another FUSE)");
	else
		say_why_not(p, "the kernel refuses: %s", strerror(-err));
}

/* Another FUSE file system below would get the flags of every open, and refuse some. */
static bool is_on_fuse(struct wfs_driver *d)
{
	struct statfs st;

	return statfs(wfs_store_path(d->store), &st) == 0 && st.f_type == FUSE_SUPER_MAGIC;
}

/* With a file of the store, so that the disk below has its say. */
static int try_it(struct wfs_driver *d)
{
	WFS_AUTO_FREE char *path = NULL;
	WFS_AUTO_CLOSE int fd = -1;
	int id;

	if (is_on_fuse(d))
		return -ELOOP;
	path = wfs_format("%s/weightfs.db", wfs_store_path(d->store));
	if (!path)
		return -ENOMEM;
	fd = open(path, O_RDONLY | O_CLOEXEC);
	id = fd >= 0 ? register_fd(d, fd) : -errno;
	if (id > 0)
		unregister(d, id);
	return id > 0 ? 0 : id;
}

int wfs_passthrough_begin(struct wfs_driver *d)
{
	struct wfs_passthrough *p = &d->passthrough;

	atomic_store(&p->init_unique, 0);
	if (!p->why_not[0]) {
		int err = try_it(d);

		if (err)
			explain(p, err);
	}
	if (!p->why_not[0]) {
		/* What an open by somebody else says while a lease is held, for a moment (lib/datafile.h). */
		signal(SIGIO, SIG_IGN);
		wfs_store_use_directly(d->store);
		atomic_store(&p->on, true);
	}
	if (d->options->verbose)
		wfs_log(&d->log, "passthrough: %s%s", p->why_not[0] ? "off: " : "on", p->why_not);
	if (p->why_not[0] && d->options->passthrough == WFS_PASSTHROUGH_ON)
		return wfs_err_set(&d->failure, -ENOTSUP, "no-passthrough", WFS_NO_OFFSET,
			"-o passthrough=on, but it cannot be had: %s", p->why_not);
	if (wfs_store_note(d->store, WFS_NOTE_PASSTHROUGH, p->why_not[0] ? p->why_not : "on") != 0 &&
		!wfs_store_is_read_only(d->store))
		wfs_log(&d->log, "passthrough: weightfs status will not know of it");
	return 0;
}

void wfs_passthrough_end(struct wfs_driver *d)
{
	atomic_store(&d->passthrough.on, false);
}

/* ---- the way of an inode ---- */

static struct wfs_io *find(struct wfs_io *list, uint64_t ino)
{
	while (list && list->ino != ino)
		list = list->next;
	return list;
}

/* Where the blocks that a program takes are counted, its writes have to come by. */
static bool may_go_directly(struct wfs_driver *d, struct wfs_handle *h)
{
	return !d->options->max_size || !(h->writes || wfs_file_is_dirty(h->file));
}

/* The first handle. 1: directly; 0: through the driver. */
static int choose(struct wfs_driver *d, struct wfs_handle *h, struct wfs_io *io)
{
	int ret = may_go_directly(d, h) ? wfs_file_pin(h->file, h->reads, h->writes) : 0;
	int fd;

	if (ret <= 0)
		return ret;
	fd = wfs_file_pinned_fd(h->file);
	io->backing = fd >= 0 ? register_fd(d, fd) : fd;
	if (fd >= 0)
		close(fd);
	if (io->backing > 0)
		return 1;
	wfs_log(&d->log, "passthrough: inode %llu: %s; it goes through the driver",
		(unsigned long long)io->ino, strerror(-io->backing));
	io->backing = 0;
	wfs_file_unpin(h->file, h->reads);
	return 0;
}

static int open_locked(struct wfs_driver *d, struct wfs_handle *h, struct wfs_io *io)
{
	int ret = 0;

	if (io->handles == 0)
		ret = choose(d, h, io);
	else if (io->backing)
		ret = wfs_file_pin(h->file, h->reads, h->writes); /* never 0: it is pinned */
	if (ret < 0)
		return ret;
	io->handles++;
	h->backing = io->backing;
	return 0;
}

int wfs_io_open(struct wfs_driver *d, struct wfs_handle *h)
{
	uint64_t ino = wfs_file_ino(h->file);
	struct wfs_io **list, *io;
	pthread_mutex_t *lock;
	int ret = -ENOMEM;

	h->backing = 0;
	if (!atomic_load(&d->passthrough.on))
		return 0;
	wfs_file_wait_for_clone(h->file);
	list = &d->passthrough.stripes[ino % WFS_IO_STRIPES].list;
	lock = &d->passthrough.stripes[ino % WFS_IO_STRIPES].lock;
	pthread_mutex_lock(lock);
	io = find(*list, ino);
	if (!io) {
		io = calloc(1, sizeof(*io));
		if (io) {
			io->ino = ino;
			io->next = *list;
			*list = io;
		}
	}
	if (io)
		ret = open_locked(d, h, io);
	if (io && io->handles == 0) {
		*list = io->next; /* it was put there just now */
		free(io);
	}
	h->counted = ret == 0;
	pthread_mutex_unlock(lock);
	return ret;
}

bool wfs_io_close(struct wfs_driver *d, struct wfs_handle *h)
{
	uint64_t ino = wfs_file_ino(h->file);
	struct wfs_io **p, *io;
	pthread_mutex_t *lock;
	bool wants_seal = false;

	if (!h->counted)
		return false;
	lock = &d->passthrough.stripes[ino % WFS_IO_STRIPES].lock;
	pthread_mutex_lock(lock);
	p = &d->passthrough.stripes[ino % WFS_IO_STRIPES].list;
	while ((*p)->ino != ino)
		p = &(*p)->next;
	io = *p;
	if (io->backing)
		wants_seal = wfs_file_unpin(h->file, h->reads);
	if (--io->handles == 0) {
		if (io->backing && atomic_load(&d->passthrough.on))
			unregister(d, io->backing);
		*p = io->next;
		free(io);
	}
	pthread_mutex_unlock(lock);
	return wants_seal;
}
