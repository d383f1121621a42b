/*
 * driver.h - what the files of fs/ share: the mount, its tables, its pool.
 *
 * A request comes in on one of the threads of fs/loop.c, is decided in one of
 * the op_*.c files and answered there, once, as the last thing: after a reply
 * the kernel may do anything with the inode. No lock of fs/ or lib/ is held
 * across a reply or across I/O on data (docs/locking.md).
 */
#ifndef WFS_DRIVER_H
#define WFS_DRIVER_H

#include <semaphore.h>
#include <stdatomic.h>

#include "fs/fuse.h"
#include "fs/inode.h"
#include "fs/log.h"
#include "fs/notify.h"
#include "fs/passthrough.h"
#include "fs/scratch.h"
#include "fs/session.h"
#include "fs/view.h"
#include "fs/watchdog.h"
#include "fs/work.h"
#include "lib/file.h"
#include "lib/name.h"

/* Seconds for which the kernel may keep names and attributes: only this mount changes them. */
#define WFS_CACHE_SECONDS (86400.0 * 3650)

/* Bytes of the largest read or write request. */
#define WFS_MAX_IO (1u << 20)

struct wfs_driver {
	const struct wfs_mount_options *options; /* constant */
	struct wfs_store *store;                 /* constant */
	struct fuse_session *session;            /* constant */
	struct wfs_log log;
	struct wfs_inodes inodes;
	struct wfs_views views;
	struct wfs_scratches scratches;
	struct wfs_view_errors view_errors;
	struct wfs_notify notify;
	struct wfs_work work;
	struct wfs_passthrough passthrough;
	struct wfs_watchdog watchdog;
	struct wfs_err failure;                  /* why the loop was ended before it began */
	bool is_unmounted;                       /* by the signal thread, before it ends */
	sem_t loop_ends;                         /* posted when the threads of the loop are to end */
	pthread_mutex_t handles_lock;
	struct wfs_handle *handles;              /* all of them; under handles_lock */
	char *mountpoint;                        /* absolute; constant */
	int ready_fd;                            /* pipe to the waiting parent, -1: none */
};

/* One open(2) of a regular file; fi->fh. */
struct wfs_handle {
	struct wfs_file *file;
	bool reads, writes;
	bool counted;    /* in its inode's wfs_io */
	bool is_scratch; /* counted in fs/scratch.h */
	bool syncs;      /* O_SYNC or O_DSYNC: what it wrote is on the disk */
	int32_t backing; /* 0: reads and writes come to the driver */
	atomic_int failed; /* -errno of the last write that failed */
	atomic_bool wrote; /* since the gate last let it pass */
	atomic_bool repacking;      /* a thread is at `repack` */
	struct wfs_repack *repack;  /* of op_ioctl.c; NULL: none is under way */
	struct wfs_handle *next, **link; /* in the driver's list, under its lock; link: what points here */
};

static inline struct wfs_driver *wfs_driver_of(fuse_req_t req)
{
	return fuse_req_userdata(req);
}

static inline struct wfs_handle *wfs_handle_of(const struct fuse_file_info *fi)
{
	return (struct wfs_handle *)(uintptr_t)fi->fh;
}

/* ---- session.c ---- */

/* The INIT operation. */
void wfs_session_init(void *userdata, struct fuse_conn_info *conn);
/* INIT was answered: the mount serves, and the command that started it may go. */
void wfs_session_ready(struct wfs_driver *d);

/* ---- op_attr.c ---- */

void wfs_fill_stat(const struct wfs_attr *a, struct stat *st);
/* For how long the kernel may keep them: not at all while programs write the file past the driver. */
double wfs_attr_seconds(struct wfs_driver *d, const struct wfs_attr *a);
/* Does not count the lookup. */
void wfs_fill_entry(struct wfs_driver *d, const struct wfs_attr *a, struct fuse_entry_param *e);
/* For how long it may keep a name: that of a shard not at all, since what is written to .tensors replaces it. */
double wfs_entry_seconds(struct wfs_driver *d, const char *name);
/* Count a lookup of the inode, then reply with it under this name; undo if the kernel is not there to take it. */
void wfs_reply_entry(fuse_req_t req, const struct wfs_attr *a, const char *name);

/* The bytes of an attribute, or of the list of names, to a request that has room for `size`; 0 asks how many. */
void wfs_reply_xattr(fuse_req_t req, int err, const void *bytes, size_t have, size_t size);

/* ---- op_file.c ---- */

/* Handle for an open with these flags; counts as writer. 0 or -errno. */
int wfs_handle_new(struct wfs_driver *d, uint64_t ino, int flags, struct wfs_handle **ret);
/* The end of a handle: may start a seal. */
void wfs_handle_free(struct wfs_driver *d, struct wfs_handle *h);
/* After the loop: the kernel may end a mount without a RELEASE for what was closed last. */
void wfs_handles_free_all(struct wfs_driver *d);
/* Log what the gate has against a file, with its path; nothing if it has nothing. */
void wfs_log_verdict(struct wfs_driver *d, uint64_t ino, const char *what,
	const struct wfs_err *why);

/*
 * Reply with the bytes of a content, less at its end. Where some are damaged, EIO; who reads with
 * O_DIRECT (`is_direct`) gets what is before these: elsewhere a short answer means the end of the file.
 */
struct wfs_content;
void wfs_reply_content(fuse_req_t req, struct wfs_content *c, size_t size, uint64_t offset, bool is_direct);

/* Free what a thread of the loop keeps for itself. */
void wfs_thread_end(void);

/* ---- op_name.c ---- */

/* Attributes of a new inode for this caller. */
struct wfs_new wfs_new_for(fuse_req_t req, mode_t mode);
/* An inode lost its last name: it is dropped when the kernel has forgotten it. */
void wfs_inode_gone(struct wfs_driver *d, uint64_t ino);
void wfs_forget(struct wfs_driver *d, uint64_t ino, uint64_t n);

/* ---- wire.c: answers in the kernel's own words, for what libfuse 3.14 has none ---- */

struct fuse_entry_out;
struct fuse_open_out;

void wfs_wire_entry(struct wfs_driver *d, const struct wfs_attr *a, struct fuse_entry_out *ret);
/* Of a file that nobody but the one who is answered can know of. */
void wfs_wire_new_entry(struct wfs_driver *d, const struct wfs_attr *a, struct fuse_entry_out *ret);
void wfs_wire_open(struct wfs_driver *d, const struct wfs_handle *h, struct fuse_open_out *ret);

/* ---- op_tmpfile.c ---- */

/* libfuse 3.14 does not know FUSE_TMPFILE. True if the raw request was one, and has been answered. */
bool wfs_try_tmpfile(struct wfs_driver *d, const void *request, size_t size);

/* The table of operations. */
extern const struct fuse_lowlevel_ops wfs_ops;

void wfs_op_lookup(fuse_req_t req, fuse_ino_t parent, const char *name);
void wfs_op_forget(fuse_req_t req, fuse_ino_t ino, uint64_t nlookup);
void wfs_op_forget_multi(fuse_req_t req, size_t count, struct fuse_forget_data *forgets);
void wfs_op_getattr(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi);
void wfs_op_setattr(fuse_req_t req, fuse_ino_t ino, struct stat *attr, int to_set,
	struct fuse_file_info *fi);
void wfs_op_readlink(fuse_req_t req, fuse_ino_t ino);
void wfs_op_mknod(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode, dev_t rdev);
void wfs_op_mkdir(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode);
void wfs_op_unlink(fuse_req_t req, fuse_ino_t parent, const char *name);
void wfs_op_rmdir(fuse_req_t req, fuse_ino_t parent, const char *name);
void wfs_op_symlink(fuse_req_t req, const char *target, fuse_ino_t parent, const char *name);
void wfs_op_rename(fuse_req_t req, fuse_ino_t parent, const char *name, fuse_ino_t newparent,
	const char *newname, unsigned int flags);
void wfs_op_link(fuse_req_t req, fuse_ino_t ino, fuse_ino_t newparent, const char *newname);
void wfs_op_open(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi);
void wfs_op_create(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode,
	struct fuse_file_info *fi);
void wfs_op_read(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off,
	struct fuse_file_info *fi);
void wfs_op_write(fuse_req_t req, fuse_ino_t ino, const char *buf, size_t size, off_t off,
	struct fuse_file_info *fi);
void wfs_op_flush(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi);
void wfs_op_release(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi);
void wfs_op_fsync(fuse_req_t req, fuse_ino_t ino, int datasync, struct fuse_file_info *fi);
void wfs_op_fallocate(fuse_req_t req, fuse_ino_t ino, int mode, off_t offset, off_t length,
	struct fuse_file_info *fi);
void wfs_op_lseek(fuse_req_t req, fuse_ino_t ino, off_t off, int whence,
	struct fuse_file_info *fi);
void wfs_op_copy_file_range(fuse_req_t req, fuse_ino_t ino_in, off_t off_in,
	struct fuse_file_info *fi_in, fuse_ino_t ino_out, off_t off_out,
	struct fuse_file_info *fi_out, size_t len, int flags);
void wfs_op_opendir(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi);
void wfs_op_readdir(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off,
	struct fuse_file_info *fi);
void wfs_op_readdirplus(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off,
	struct fuse_file_info *fi);
void wfs_op_releasedir(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi);
void wfs_op_fsyncdir(fuse_req_t req, fuse_ino_t ino, int datasync, struct fuse_file_info *fi);
void wfs_op_statfs(fuse_req_t req, fuse_ino_t ino);
void wfs_op_setxattr(fuse_req_t req, fuse_ino_t ino, const char *name, const char *value,
	size_t size, int flags);
void wfs_op_getxattr(fuse_req_t req, fuse_ino_t ino, const char *name, size_t size);
void wfs_op_listxattr(fuse_req_t req, fuse_ino_t ino, size_t size);
void wfs_op_removexattr(fuse_req_t req, fuse_ino_t ino, const char *name);
void wfs_op_ioctl(fuse_req_t req, fuse_ino_t ino, unsigned int cmd, void *arg,
	struct fuse_file_info *fi, unsigned int flags, const void *in, size_t in_size,
	size_t out_size);

#endif
