#include "fs/loop.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>

#include "lib/store_time.h"

#include "fs/order.h"

/* Threads that wait for a request in the kernel: at first, and at most after requests that came together. */
#define READERS_FIRST 2
#define READERS_MAX 4

/*
 * The kernel wakes the thread that has waited longest. With all of them waiting
 * there, one program's requests would go around all of them, and each find its
 * stacks cold: few wait there, the others here, until those are busy.
 */
struct crew {
	struct wfs_driver *d;
	pthread_mutex_t lock;
	pthread_cond_t wanted;
	unsigned readers; /* in the kernel, on their way there, or called */
	unsigned calls;   /* for one to go there, not yet heard */
	bool ends;
};

/* Where `max` threads are reading already, wait for a call. False: there is nothing more to do. */
static bool go_reading(struct crew *c, unsigned max)
{
	bool goes;

	pthread_mutex_lock(&c->lock);
	while (!c->calls && c->readers >= max && !c->ends)
		pthread_cond_wait(&c->wanted, &c->lock);
	if (c->calls)
		c->calls--;
	else
		c->readers++;
	goes = !c->ends;
	pthread_mutex_unlock(&c->lock);
	return goes;
}

/* This thread has a request: somebody must be there for the next. */
static void stop_reading(struct crew *c)
{
	pthread_mutex_lock(&c->lock);
	if (--c->readers == 0) {
		c->readers++;
		c->calls++;
		pthread_cond_signal(&c->wanted);
	}
	pthread_mutex_unlock(&c->lock);
}

static void serve(struct wfs_driver *d, struct fuse_buf *buf)
{
	bool is_init;

	/* Requests come in memory: splicing them was slower (docs/decisions). */
	if (wfs_try_tmpfile(d, buf->mem, buf->size))
		return;
	is_init = wfs_passthrough_look(d, buf->mem, buf->size);
	fuse_session_process_buf(d->session, buf);
	if (is_init && wfs_passthrough_begin(d) == 0)
		wfs_session_ready(d);
	else if (is_init)
		fuse_session_exit(d->session);
}

/* What was received, as fuse_session_receive_buf says it. */
static int receive(struct crew *c, struct fuse_buf *buf)
{
	int n = -EINTR;

	while (!fuse_session_exited(c->d->session) && (n == -EINTR || n == -EAGAIN))
		n = fuse_session_receive_buf(c->d->session, buf);
	return n;
}

static void *thread_main(void *ctx)
{
	struct crew *c = ctx;
	struct wfs_driver *d = c->d;
	struct wfs_request_slot *slot = wfs_watchdog_slot(&d->watchdog);
	struct fuse_buf buf = { .mem = NULL };

	for (bool goes = go_reading(c, READERS_FIRST); goes; goes = go_reading(c, READERS_MAX)) {
		int n = receive(c, &buf);

		if (n <= 0) {
			/* 0: unmounted, and the session knows. Else it was told to end, or the device failed. */
			if (n < 0 && n != -EINTR && n != -EAGAIN)
				wfs_log(&d->log, "the FUSE device: %s", strerror(-n));
			fuse_session_exit(d->session);
			break;
		}
		stop_reading(c);
		wfs_order_request(buf.mem, (size_t)n);
		wfs_request_begin(slot, buf.mem, (size_t)n);
		serve(d, &buf);
		wfs_watchdog_end(&d->watchdog, slot);
	}
	free(buf.mem);
	wfs_thread_end();
	wfs_loop_wake(d);
	return NULL;
}

static void nothing(int sig)
{
	(void)sig;
}

/* A read of the device that is under way ends with EINTR. */
static void take_wake_signal(void)
{
	struct sigaction sa = { .sa_handler = nothing };
	sigset_t set;

	sigaction(WFS_LOOP_SIGNAL, &sa, NULL);
	sigemptyset(&set);
	sigaddset(&set, WFS_LOOP_SIGNAL);
	pthread_sigmask(SIG_UNBLOCK, &set, NULL);
}

/*
 * A thread may be anywhere between its look at the flag and its read when the
 * signal comes: repeat until it has ended.
 */
static void join(pthread_t thread)
{
	struct timespec until;

	for (;;) {
		until = wfs_timespec(wfs_now_ns() + 20000000);
		if (pthread_timedjoin_np(thread, NULL, &until) == 0)
			return;
		pthread_kill(thread, WFS_LOOP_SIGNAL);
	}
}

void wfs_loop_wake(struct wfs_driver *d)
{
	sem_post(&d->loop_ends);
}

static void dismiss(struct crew *c)
{
	pthread_mutex_lock(&c->lock);
	c->ends = true;
	pthread_cond_broadcast(&c->wanted);
	pthread_mutex_unlock(&c->lock);
}

static int run(struct crew *c, pthread_t *ids, unsigned threads)
{
	unsigned n = 0;
	int ret = 0;

	while (n < threads && ret == 0) {
		ret = -pthread_create(&ids[n], NULL, thread_main, c);
		n += ret == 0;
	}
	if (n == 0)
		return ret;
	while (sem_wait(&c->d->loop_ends) != 0)
		; /* EINTR */
	dismiss(c);
	for (unsigned i = 0; i < n; i++)
		join(ids[i]);
	return 0;
}

int wfs_loop_run(struct wfs_driver *d, unsigned threads)
{
	WFS_AUTO_FREE pthread_t *ids = calloc(threads, sizeof(*ids));
	struct crew c = { .d = d };
	int ret;

	if (!ids)
		return -ENOMEM;
	pthread_mutex_init(&c.lock, NULL);
	pthread_cond_init(&c.wanted, NULL);
	take_wake_signal();
	ret = run(&c, ids, threads);
	pthread_cond_destroy(&c.wanted);
	pthread_mutex_destroy(&c.lock);
	return ret;
}
