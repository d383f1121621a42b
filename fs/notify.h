/*
 * notify.h - tell the kernel that a name may lead somewhere else now, or that pages it has
 * of a file are to be read anew.
 *
 * For such a notification the kernel locks the directory or the pages, and so may wait for a request that
 * is still to be served. So it is never sent from a thread that serves: one thread of its
 * own sends them, and nobody waits for it but who ends the mount, as long as requests are served.
 */
#ifndef WFS_NOTIFY_H
#define WFS_NOTIFY_H

#include <pthread.h>

#include "fs/fuse.h"
#include "lib/base.h"

struct wfs_notice {
	uint64_t ino;  /* of the directory, or of the file whose pages are meant */
	bool is_pages;
	struct wfs_notice *next;
	char name[]; /* in the directory */
};

struct wfs_notify {
	struct fuse_session *session; /* constant */
	pthread_t thread;
	bool runs; /* of who starts and stops it */
	pthread_mutex_t lock;
	/* under lock */
	pthread_cond_t wake;
	bool stop;
	struct wfs_notice *first, **last;
};

int wfs_notify_start(struct wfs_notify *n, struct fuse_session *session);
/*
 * No notification is sent any more, nor is one on its way, when this returns. To be called while the
 * session's descriptor is open (its number may be another file's later), and while requests
 * are served, or the mount is gone: else what a notification waits for may never come. What others
 * have sent from here on is dropped. Does nothing the second time.
 */
void wfs_notify_stop(struct wfs_notify *n);
/* When it is stopped, or was never started, and no other thread is left. */
void wfs_notify_release(struct wfs_notify *n);

/* Have the kernel forget what it knows of this name. From any thread; without memory it is not
 * told. */
void wfs_notify_name(struct wfs_notify *n, uint64_t dir, const char *name);
/* Have it drop the pages that it has of this file. As above. */
void wfs_notify_pages(struct wfs_notify *n, uint64_t ino);

#endif
