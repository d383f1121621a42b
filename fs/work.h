/*
 * work.h - what happens in the background: sealing, dropping unlinked inodes,
 * giving space back, making things durable.
 *
 * A small pool seals; one more thread keeps house. None of them ever waits for
 * another, or for a request. A request waits for the housekeeper only when the disk
 * is full.
 */
#ifndef WFS_WORK_H
#define WFS_WORK_H

#include <pthread.h>
#include <stdatomic.h>

#include "lib/base.h"
#include "lib/store.h"

#define WFS_WORK_SEALERS 2

struct wfs_work_item {
	int64_t due_ns; /* CLOCK_MONOTONIC */
	uint64_t ino;
	bool alone;     /* it is not to be sealed together with others */
};

struct wfs_log;

struct wfs_work {
	struct wfs_store *store; /* constant */
	struct wfs_log *log;     /* constant */
	void (*tick)(void *ctx, bool quiet); /* each round of the housekeeper; quiet: nothing was committed for a second */
	void *tick_ctx;
	pthread_t sealers[WFS_WORK_SEALERS];
	pthread_t housekeeper;
	unsigned n_sealers; /* running; owner's */
	bool has_housekeeper;
	_Atomic int64_t expected_ns; /* when one was last removed that the kernel knew; monotonic; 0: never */

	pthread_mutex_t lock;
	/* under lock */
	pthread_cond_t wake_sealer, wake_housekeeper; /* CLOCK_MONOTONIC */
	bool stop;
	struct wfs_work_item *heap; /* earliest first */
	size_t n, room;
	pthread_cond_t house_kept;  /* a round of the housekeeper has ended */
	uint64_t rounds_begun, rounds_ended;
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
/* One has lost its last name, and will be dropped when the kernel forgets it: soon, unless somebody has it open. */
void wfs_work_expect(struct wfs_work *w);

/*
 * For a request that ended with `ret`: if that is -ENOSPC, have what was removed
 * before given back now, and not soon, wait for it, and return true: try again.
 * For a second after a removal that includes the wait for the kernel to forget it.
 * `*tries`, 0 at first, counts for one request. No lock may be held.
 */
bool wfs_work_try_again(struct wfs_work *w, ssize_t ret, int *tries);

/* After stop: seal everything that is dirty, in this thread. */
void wfs_work_seal_all(struct wfs_work *w);

#endif
