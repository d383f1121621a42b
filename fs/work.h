/*
 * work.h - what happens in the background: sealing, dropping unlinked inodes,
 * giving space back, making things durable.
 *
 * A small pool seals; one more thread keeps house. None of them ever waits for
 * another, or for a request.
 */
#ifndef WFS_WORK_H
#define WFS_WORK_H

#include <pthread.h>

#include "lib/base.h"
#include "lib/store.h"

#define WFS_WORK_SEALERS 2

struct wfs_work_item {
	int64_t due_ns; /* CLOCK_MONOTONIC */
	uint64_t ino;
};

struct wfs_log;

struct wfs_work {
	struct wfs_store *store; /* constant */
	struct wfs_log *log;     /* constant */
	pthread_t sealers[WFS_WORK_SEALERS];
	pthread_t housekeeper;
	unsigned n_sealers; /* running; owner's */
	bool has_housekeeper;

	pthread_mutex_t lock;
	/* under lock */
	pthread_cond_t wake_sealer, wake_housekeeper; /* CLOCK_MONOTONIC */
	bool stop;
	struct wfs_work_item *heap; /* earliest first */
	size_t n, room;
	uint64_t *dead; /* inodes to drop */
	size_t n_dead, dead_room;
};

void wfs_work_init(struct wfs_work *w, struct wfs_store *store, struct wfs_log *log);
/* Start the threads, and seal what is dirty already. After daemonizing. */
int wfs_work_start(struct wfs_work *w);
/* Let each thread finish what it is at, and wait for it. */
void wfs_work_stop(struct wfs_work *w);
void wfs_work_release(struct wfs_work *w);

/* Seal this inode after a quiet time. */
void wfs_work_seal_later(struct wfs_work *w, uint64_t ino);
/* Drop this inode, which has no name and is not known to the kernel, soon. */
void wfs_work_drop(struct wfs_work *w, uint64_t ino);

/* After stop: seal everything that is dirty, in this thread. */
void wfs_work_seal_all(struct wfs_work *w);

#endif
