#include "fs/work.h"

#include <errno.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

#include "fs/log.h"
#include "lib/array.h"
#include "lib/collect.h"
#include "lib/model.h"
#include "lib/name.h"
#include "lib/quota.h"
#include "lib/reserve.h"
#include "lib/seal.h"
#include "lib/store_time.h"

#define MS INT64_C(1000000)
#define QUIET_NS (300 * MS)         /* from the last close to the seal, at most */
#define TOGETHER_NS (64 * MS)       /* what is due within one of these is due when it begins */
#define RETRY_NS (10000 * MS)       /* after a seal that failed: a full disk, perhaps */
#define TICK_NS (250 * MS)          /* of the housekeeper */
#define QUIET_TICKS 4               /* without a commit, after which the store is quiet */
#define BUSY_TICK_NS (50 * MS)      /* while transactions come fast */
#define SEALER_NICE 10              /* what was written gives way to what is being done */
#define FULL_TRIES 3                /* of a request on a full disk */
#define EXPECT_NS (1000 * MS)       /* in which what was removed is forgotten by the kernel, if nobody has it open */
#define DURABLE_NS (4000 * MS)      /* what was sealed is on the disk after this at the latest */

static void init_cond(pthread_cond_t *cond)
{
	pthread_condattr_t attr;

	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(cond, &attr);
	pthread_condattr_destroy(&attr);
}

void wfs_work_init(struct wfs_work *w, struct wfs_store *store, struct wfs_log *log)
{
	memset(w, 0, sizeof(*w));
	w->store = store;
	w->log = log;
	pthread_mutex_init(&w->lock, NULL);
	init_cond(&w->wake_sealer);
	init_cond(&w->wake_housekeeper);
	init_cond(&w->house_kept);
}

void wfs_work_release(struct wfs_work *w)
{
	free(w->heap);
	free(w->dead);
	pthread_mutex_destroy(&w->lock);
	pthread_cond_destroy(&w->wake_sealer);
	pthread_cond_destroy(&w->wake_housekeeper);
	pthread_cond_destroy(&w->house_kept);
}

static void wait_until(struct wfs_work *w, pthread_cond_t *cond, int64_t due_ns)
{
	struct timespec ts = wfs_timespec(due_ns);

	pthread_cond_timedwait(cond, &w->lock, &ts);
}

/* ---- the heap; under lock ---- */

static void swap(struct wfs_work_item *a, struct wfs_work_item *b)
{
	struct wfs_work_item t = *a;

	*a = *b;
	*b = t;
}

static void push(struct wfs_work *w, struct wfs_work_item item)
{
	size_t i = w->n;

	if (WFS_ARRAY_ROOM(w->heap, w->n, w->room))
		return; /* it stays dirty until the unmount or the next mount */
	w->heap[w->n++] = item;
	for (; i > 0 && w->heap[i].due_ns < w->heap[(i - 1) / 2].due_ns; i = (i - 1) / 2)
		swap(&w->heap[i], &w->heap[(i - 1) / 2]);
}

static struct wfs_work_item pop(struct wfs_work *w)
{
	struct wfs_work_item item = w->heap[0];
	size_t i = 0;

	w->heap[0] = w->heap[--w->n];
	for (;;) {
		size_t least = i, left = 2 * i + 1, right = 2 * i + 2;

		if (left < w->n && w->heap[left].due_ns < w->heap[least].due_ns)
			least = left;
		if (right < w->n && w->heap[right].due_ns < w->heap[least].due_ns)
			least = right;
		if (least == i)
			return item;
		swap(&w->heap[i], &w->heap[least]);
		i = least;
	}
}

static void seal_at(struct wfs_work *w, struct wfs_work_item item)
{
	pthread_mutex_lock(&w->lock);
	push(w, item);
	/* Who waits for what was first until now goes on waiting for it. */
	if (w->heap[0].due_ns == item.due_ns && w->heap[0].ino == item.ino)
		pthread_cond_signal(&w->wake_sealer);
	pthread_mutex_unlock(&w->lock);
}

void wfs_work_seal_later(struct wfs_work *w, uint64_t ino)
{
	int64_t due_ns = (wfs_monotonic_ns() + QUIET_NS) / TOGETHER_NS * TOGETHER_NS;

	seal_at(w, (struct wfs_work_item){ .due_ns = due_ns, .ino = ino });
}

/* ---- sealing ---- */

/* False if it failed in a way that may pass. */
static bool seal_one(struct wfs_work *w, uint64_t ino)
{
	struct wfs_err err = WFS_ERR_INIT;
	int ret = wfs_seal(w->store, ino, &err);

	/* Busy: who writes it now asks for the seal when done. */
	if (ret == 0 || ret == -EBUSY)
		return true;
	if (err.reason && strcmp(err.reason, "sync-failed") == 0)
		return true; /* until somebody writes it anew */
	/* A mapping that can still write it: nobody says when that ends. */
	if (ret != -ETXTBSY)
		wfs_log(w->log, "%s", err.text);
	return ret == -EFBIG;
}

static void seal_alone(struct wfs_work *w, uint64_t ino)
{
	if (!seal_one(w, ino))
		seal_at(w, (struct wfs_work_item){ wfs_monotonic_ns() + RETRY_NS, ino, true });
}

/* What is small goes together; the rest is for whichever sealer has time. */
static void seal_together(struct wfs_work *w, uint64_t *inos, size_t n)
{
	wfs_seal_small(w->store, inos, &n);
	for (size_t i = 0; i < n; i++)
		seal_at(w, (struct wfs_work_item){ wfs_monotonic_ns(), inos[i], true });
}

/* Under lock, something is due: as much of it as one sealer takes at once. */
static size_t take_due(struct wfs_work *w, uint64_t *inos, bool *ret_alone)
{
	int64_t now = wfs_monotonic_ns();
	size_t n = 0;

	*ret_alone = w->heap[0].alone;
	do
		inos[n++] = pop(w).ino;
	while (!*ret_alone && n < WFS_SEAL_AT_ONCE && w->n > 0 && w->heap[0].due_ns <= now &&
		!w->heap[0].alone);
	if (w->n > 0)
		pthread_cond_signal(&w->wake_sealer); /* one of the others sees to it */
	return n;
}

static void *sealer_main(void *ctx)
{
	struct wfs_work *w = ctx;

	/* Of this thread alone. A request that waits for its lock leaves it a processor meanwhile. */
	if (setpriority(PRIO_PROCESS, 0, WFS_MIN(getpriority(PRIO_PROCESS, 0) + SEALER_NICE, 19)) != 0)
		wfs_log(w->log, "sealing has the priority of requests: %s", strerror(errno));
	pthread_mutex_lock(&w->lock);
	while (!w->stop) {
		uint64_t inos[WFS_SEAL_AT_ONCE];
		bool alone;
		size_t n;

		if (w->n == 0) {
			pthread_cond_wait(&w->wake_sealer, &w->lock);
			continue;
		}
		if (w->heap[0].due_ns > wfs_monotonic_ns()) {
			wait_until(w, &w->wake_sealer, w->heap[0].due_ns);
			continue;
		}
		n = take_due(w, inos, &alone);
		pthread_mutex_unlock(&w->lock);
		if (alone)
			seal_alone(w, inos[0]);
		else
			seal_together(w, inos, n);
		pthread_mutex_lock(&w->lock);
	}
	pthread_mutex_unlock(&w->lock);
	return NULL;
}

/* How many of them are left, at the beginning of `inos`. */
static size_t seal_small_ones(struct wfs_store *store, uint64_t *inos, size_t n)
{
	size_t left = 0;

	for (size_t i = 0, part; i < n; i += part) {
		size_t rest;

		part = rest = WFS_MIN(n - i, (size_t)WFS_SEAL_AT_ONCE);
		wfs_seal_small(store, inos + i, &rest);
		memmove(inos + left, inos + i, rest * sizeof(*inos));
		left += rest;
	}
	return left;
}

void wfs_work_seal_all(struct wfs_work *w)
{
	WFS_AUTO_FREE uint64_t *inos = NULL;
	size_t n = 0;
	int ret = wfs_seal_list(w->store, &inos, &n);

	if (ret)
		wfs_log(w->log, "the dirty files could not be listed: %s", strerror(-ret));
	n = seal_small_ones(w->store, inos, n);
	for (size_t i = 0; i < n; i++) {
		/* Nobody is left who could be busy with it. */
		if (wfs_seal(w->store, inos[i], NULL) != 0)
			wfs_log(w->log, "inode %llu stays dirty; it is sealed after the next mount",
				(unsigned long long)inos[i]);
	}
}

/* ---- keeping house ---- */

void wfs_work_drop(struct wfs_work *w, uint64_t ino)
{
	pthread_mutex_lock(&w->lock);
	/* Without memory it is dropped at the unmount. */
	if (WFS_ARRAY_ROOM(w->dead, w->n_dead, w->dead_room) == 0)
		w->dead[w->n_dead++] = ino;
	pthread_mutex_unlock(&w->lock);
}

static void drop_dead(struct wfs_work *w)
{
	WFS_AUTO_FREE uint64_t *dead = NULL;
	size_t n;
	int ret;

	pthread_mutex_lock(&w->lock);
	dead = w->dead;
	n = w->n_dead;
	w->dead = NULL;
	w->n_dead = w->dead_room = 0;
	pthread_mutex_unlock(&w->lock);
	if (n == 0)
		return;
	ret = wfs_name_drop(w->store, dead, n);
	if (ret)
		wfs_log(w->log, "%zu unlinked files could not be dropped: %s", n, strerror(-ret));
}

/* What the housekeeper remembers from one tick to the next. */
struct house {
	int64_t synced_ns; /* when everything was last made durable */
	uint64_t commits;  /* of the store at the last tick */
	uint64_t tidied;   /* commits when it was last tidied */
	unsigned quiet;    /* ticks without a commit */
};

/* Nothing happened for a tick, and something before it. */
static void tidy_if_quiet(struct wfs_work *w, struct house *h)
{
	uint64_t commits = wfs_store_commits(w->store);
	bool quiet = commits == h->commits && commits != h->tidied;
	int ret;

	h->commits = commits;
	if (!quiet)
		return;
	ret = wfs_store_tidy(w->store);
	if (ret <= 0)
		h->tidied = commits;
	if (ret < 0)
		wfs_log(w->log, "the database could not be tidied: %s", strerror(-ret));
}

static void keep_house(struct wfs_work *w, struct house *h)
{
	int64_t now = wfs_monotonic_ns();
	int ret = 0;

	if (!wfs_store_check_place(w->store))
		return;
	h->quiet = wfs_store_commits(w->store) == h->commits ? h->quiet + 1 : 0;
	if (w->tick)
		w->tick(w->tick_ctx, h->quiet >= QUIET_TICKS);
	drop_dead(w);
	wfs_model_tidy(w->store);
	wfs_reserve_keep(w->store); /* if it cannot be had now, then at the next tick */
	if (wfs_collect_wanted(w->store))
		ret = wfs_collect(w->store);
	if (ret)
		wfs_log(w->log, "space could not be given back: %s; will be tried again",
			strerror(-ret));
	tidy_if_quiet(w, h);
	if (now - h->synced_ns < DURABLE_NS && wfs_store_log_pages(w->store) < WFS_STORE_LOG_PAGES)
		return;
	h->synced_ns = now;
	wfs_quota_count(w->store);
	ret = wfs_store_checkpoint(w->store, WFS_STORE_LOG_PAGES);
	if (ret)
		wfs_log(w->log, "the store could not be written to the disk: %s", strerror(-ret));
}

static void *housekeeper_main(void *ctx)
{
	struct wfs_work *w = ctx;
	struct house house = { .synced_ns = wfs_monotonic_ns() };
	int64_t tick_ns = TICK_NS;

	pthread_mutex_lock(&w->lock);
	while (!w->stop) {
		wait_until(w, &w->wake_housekeeper, wfs_monotonic_ns() + tick_ns);
		w->rounds_begun++;
		pthread_mutex_unlock(&w->lock);
		keep_house(w, &house);
		tick_ns = wfs_store_log_pages(w->store) > WFS_STORE_LOG_PAGES / 4 ? BUSY_TICK_NS
										  : TICK_NS;
		pthread_mutex_lock(&w->lock);
		w->rounds_ended = w->rounds_begun;
		pthread_cond_broadcast(&w->house_kept);
	}
	pthread_mutex_unlock(&w->lock);
	return NULL;
}

/* ---- start and stop ---- */

/* Have the housekeeper do its round now, and wait for its end. False: there is nothing to give back. */
static bool give_back(struct wfs_work *w)
{
	bool wanted = wfs_collect_wanted(w->store);
	uint64_t round;

	pthread_mutex_lock(&w->lock);
	wanted = wanted || w->n_dead > 0;
	round = w->rounds_begun + 1; /* the one under way may have begun too early */
	while (wanted && !w->stop && w->has_housekeeper && w->rounds_ended < round) {
		pthread_cond_signal(&w->wake_housekeeper);
		pthread_cond_wait(&w->house_kept, &w->lock);
	}
	pthread_mutex_unlock(&w->lock);
	return wanted;
}

void wfs_work_expect(struct wfs_work *w)
{
	atomic_store(&w->expected_ns, wfs_monotonic_ns());
}

/* The kernel's FORGET of what was removed just now may be on its way. */
static bool is_expecting(struct wfs_work *w)
{
	int64_t since = atomic_load(&w->expected_ns);

	return since && wfs_monotonic_ns() - since < EXPECT_NS;
}

bool wfs_work_try_again(struct wfs_work *w, ssize_t ret, int *tries)
{
	const struct timespec moment = { .tv_nsec = 10 * MS };

	if (ret != -ENOSPC || ((*tries)++ >= FULL_TRIES && !is_expecting(w)))
		return false;
	if (!give_back(w))
		nanosleep(&moment, NULL);
	return true;
}

static void seal_what_is_dirty(struct wfs_work *w)
{
	WFS_AUTO_FREE uint64_t *inos = NULL;
	size_t n = 0;

	if (wfs_seal_list(w->store, &inos, &n) != 0)
		return;
	for (size_t i = 0; i < n; i++)
		wfs_work_seal_later(w, inos[i]);
}

int wfs_work_start(struct wfs_work *w)
{
	int ret = 0;

	seal_what_is_dirty(w);
	for (unsigned i = 0; i < WFS_WORK_SEALERS && ret == 0; i++) {
		ret = -pthread_create(&w->sealers[i], NULL, sealer_main, w);
		w->n_sealers += ret == 0;
	}
	if (ret == 0) {
		ret = -pthread_create(&w->housekeeper, NULL, housekeeper_main, w);
		w->has_housekeeper = ret == 0;
	}
	return ret;
}

void wfs_work_stop(struct wfs_work *w)
{
	pthread_mutex_lock(&w->lock);
	w->stop = true;
	pthread_cond_broadcast(&w->wake_sealer);
	pthread_cond_broadcast(&w->wake_housekeeper);
	pthread_cond_broadcast(&w->house_kept);
	pthread_mutex_unlock(&w->lock);
	for (unsigned i = 0; i < w->n_sealers; i++)
		pthread_join(w->sealers[i], NULL);
	if (w->has_housekeeper)
		pthread_join(w->housekeeper, NULL);
	w->n_sealers = 0;
	w->has_housekeeper = false;
}
