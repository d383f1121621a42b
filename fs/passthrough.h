/*
 * passthrough.h - programs read, write and map data files themselves.
 *
 * Linux ≥ 6.9 sends the I/O of an open file to a backing file that the driver
 * registers for it (DESIGN §6); the driver must have CAP_SYS_ADMIN. The kernel's
 * rules: while an inode has passthrough opens, every open of it is passthrough and
 * names the same backing file; while it has cached opens, none is. So the way of an
 * inode is chosen at its first open and kept until its last close. A file whose
 * bytes are in one data file goes directly; what is composed, in the database, or
 * sealed and opened for writing goes through the driver.
 *
 * Locks: a stripe's lock is taken before a file's, and held while an inode is
 * registered or made ready to be written.
 */
#ifndef WFS_PASSTHROUGH_H
#define WFS_PASSTHROUGH_H

#include <pthread.h>
#include <stdatomic.h>

#include "lib/base.h"

struct wfs_driver;
struct wfs_handle;

#define WFS_IO_STRIPES 256

/* An inode that has open handles. */
struct wfs_io {
	uint64_t ino;
	unsigned handles;
	int32_t backing; /* id of the registration; 0: reads and writes come to the driver */
	struct wfs_io *next;
};

struct wfs_passthrough {
	atomic_bool on;
	char why_not[200]; /* constant once the first request was served */
	_Atomic uint64_t init_unique; /* of INIT while it is being answered, else 0; each answer is compared */
	struct {
		pthread_mutex_t lock;
		struct wfs_io *list;
	} stripes[WFS_IO_STRIPES];
};

void wfs_passthrough_init(struct wfs_passthrough *p);
void wfs_passthrough_release(struct wfs_passthrough *p);

/* After the mount, before the first request: see to it that INIT is answered with it. */
void wfs_passthrough_prepare(struct wfs_driver *d);
/* In the INIT operation: ask for it, where libfuse has words for that. */
struct fuse_conn_info;
void wfs_passthrough_want(struct wfs_driver *d, struct fuse_conn_info *conn);
/* A raw request, before libfuse has it. True if it is INIT: call wfs_passthrough_begin when it was answered. */
bool wfs_passthrough_look(struct wfs_driver *d, const void *request, size_t size);
/* The connection ends, and all registrations with it. When no thread serves any more. */
void wfs_passthrough_end(struct wfs_driver *d);
/* See whether it works, and say so. -ENOTSUP if it was demanded and does not. */
int wfs_passthrough_begin(struct wfs_driver *d);

/*
 * Choose the way of a new handle: h->backing is set. After truncation, before the
 * reply. 0 or -errno (-ETXTBSY: DESIGN §4).
 */
int wfs_io_open(struct wfs_driver *d, struct wfs_handle *h);
/* The handle ends. True: the file is dirty and nobody uses it now, seal it soon. */
bool wfs_io_close(struct wfs_driver *d, struct wfs_handle *h);

#endif
