#include "fs/watchdog.h"

#include <errno.h>
#include <string.h>

#include "fs/driver.h"
#include "lib/store_time.h"

#define LOOK_NS 1000000000 /* 1 s */

/* ---- the threads of the loop ---- */

struct wfs_request_slot *wfs_watchdog_slot(struct wfs_watchdog *w)
{
	unsigned n = atomic_fetch_add(&w->n_slots, 1);
	struct wfs_request_slot *slot = w->requests && n < WFS_REQUEST_SLOTS ? &w->requests->slots[n] : &w->spare;

	atomic_store(&slot->tid, (int)gettid());
	return slot;
}

static double seconds_since(int64_t since_ns)
{
	return (double)(wfs_requests_now() - since_ns) / 1e9;
}

static void say_end(struct wfs_watchdog *w, struct wfs_request_slot *slot)
{
	char text[WFS_REQUEST_TEXT];
	struct wfs_request r;

	/* Else it was the one before that was reported, in its last moment. */
	if (!wfs_request_look(slot, &r) || wfs_requests_now() - r.since_ns < WFS_REQUEST_SLOW_NS)
		return;
	wfs_request_describe(&r, NULL, text);
	wfs_log(&w->d->log, "a request that hung has ended after %.1f s: %s", seconds_since(r.since_ns), text);
}

void wfs_watchdog_end(struct wfs_watchdog *w, struct wfs_request_slot *slot)
{
	if (atomic_load_explicit(&slot->is_reported, memory_order_relaxed) &&
		atomic_exchange(&slot->is_reported, false))
		say_end(w, slot);
	wfs_request_end(slot);
}

/* ---- the watchdog ---- */

/* NULL where the database is what is waited for. */
static char *path_of(struct wfs_driver *d, uint64_t ino)
{
	char *path = NULL;

	if (wfs_name_try_path(d->store, ino, &path) != 0)
		return NULL;
	return path;
}

static void report(struct wfs_watchdog *w, const struct wfs_request *r)
{
	WFS_AUTO_FREE char *path = path_of(w->d, r->ino);
	char text[WFS_REQUEST_TEXT], what[WFS_REQUEST_TEXT];

	wfs_request_describe(r, path, text);
	wfs_request_waits_for(w->requests, getpid(), r, what);
	wfs_log(&w->d->log, "a request hangs for %.1f s: %s; it waits for %s", seconds_since(r->since_ns), text,
		what);
}

static void look(struct wfs_watchdog *w)
{
	for (size_t i = 0; i < WFS_REQUEST_SLOTS; i++) {
		struct wfs_request_slot *slot = &w->requests->slots[i];
		struct wfs_request r;

		if (!wfs_request_look(slot, &r) || wfs_requests_now() - r.since_ns < WFS_REQUEST_SLOW_NS ||
			atomic_exchange(&slot->is_reported, true))
			continue;
		report(w, &r);
	}
}

static void *watchdog_main(void *ctx)
{
	struct wfs_watchdog *w = ctx;
	struct timespec until;

	pthread_mutex_lock(&w->lock);
	while (!w->stop) {
		until = wfs_timespec(wfs_now_ns() + LOOK_NS);
		pthread_cond_timedwait(&w->wake, &w->lock, &until);
		if (w->stop)
			break;
		pthread_mutex_unlock(&w->lock);
		look(w);
		pthread_mutex_lock(&w->lock);
	}
	pthread_mutex_unlock(&w->lock);
	return NULL;
}

void wfs_watchdog_start(struct wfs_watchdog *w, struct wfs_driver *d)
{
	int ret;

	w->d = d;
	pthread_mutex_init(&w->lock, NULL);
	pthread_cond_init(&w->wake, NULL);
	w->requests = wfs_requests_new();
	ret = w->requests ? 0 : -errno;
	if (ret == 0) {
		atomic_store(&w->requests->db_lock, wfs_store_lock_address(d->store));
		ret = -pthread_create(&w->thread, NULL, watchdog_main, w);
	}
	w->runs = ret == 0;
	if (ret)
		wfs_log(&d->log, "requests that hang are not seen: %s", strerror(-ret));
}

void wfs_watchdog_stop(struct wfs_watchdog *w)
{
	pthread_mutex_lock(&w->lock);
	w->stop = true;
	pthread_cond_signal(&w->wake);
	pthread_mutex_unlock(&w->lock);
	if (w->runs)
		pthread_join(w->thread, NULL);
	wfs_requests_free(w->requests);
	w->requests = NULL;
	pthread_cond_destroy(&w->wake);
	pthread_mutex_destroy(&w->lock);
}
