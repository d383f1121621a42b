/*
 * watchdog.h - one thread that looks at the slots of fs/requests.h every second and logs
 * each request that takes longer than WFS_REQUEST_SLOW_NS, once; the thread that is at it
 * logs its end. What programs do through passthrough is no request.
 *
 * The log lies on the store's disk: where that is what hangs, a line is written when it
 * goes on, with the time at which it was due. `weightfs status` shows it meanwhile.
 */
#ifndef WFS_WATCHDOG_H
#define WFS_WATCHDOG_H

#include <pthread.h>

#include "fs/requests.h"

struct wfs_driver;

struct wfs_watchdog {
	struct wfs_driver *d;
	struct wfs_requests *requests; /* NULL: there is no watchdog */
	atomic_uint n_slots;           /* given out */
	struct wfs_request_slot spare; /* for threads that found none */
	pthread_t thread;
	pthread_mutex_t lock;
	pthread_cond_t wake;
	bool runs, stop; /* under lock */
};

/* What cannot be had is logged, and missed. */
void wfs_watchdog_start(struct wfs_watchdog *w, struct wfs_driver *d);
void wfs_watchdog_stop(struct wfs_watchdog *w);

/* The slot of this thread of the loop, for good. */
struct wfs_request_slot *wfs_watchdog_slot(struct wfs_watchdog *w);
/* The end of a request: says how long it took, if it was reported. */
void wfs_watchdog_end(struct wfs_watchdog *w, struct wfs_request_slot *slot);

#endif
