#include "fs/loop.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <time.h>

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

static void *thread_main(void *ctx)
{
	struct wfs_driver *d = ctx;
	struct fuse_buf buf = { .mem = NULL };

	while (!fuse_session_exited(d->session)) {
		int n = fuse_session_receive_buf(d->session, &buf);

		if (n == -EINTR || n == -EAGAIN)
			continue;
		if (n <= 0) {
			/* 0: unmounted, and the session knows. Else the device failed. */
			if (n < 0)
				wfs_log(&d->log, "the FUSE device: %s", strerror(-n));
			fuse_session_exit(d->session);
			break;
		}
		serve(d, &buf);
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
		clock_gettime(CLOCK_REALTIME, &until);
		until.tv_nsec += 20000000;
		if (until.tv_nsec >= 1000000000) {
			until.tv_nsec -= 1000000000;
			until.tv_sec++;
		}
		if (pthread_timedjoin_np(thread, NULL, &until) == 0)
			return;
		pthread_kill(thread, WFS_LOOP_SIGNAL);
	}
}

void wfs_loop_wake(struct wfs_driver *d)
{
	sem_post(&d->loop_ends);
}

int wfs_loop_run(struct wfs_driver *d, unsigned threads)
{
	WFS_AUTO_FREE pthread_t *ids = calloc(threads, sizeof(*ids));
	unsigned n = 0;
	int ret = 0;

	if (!ids)
		return -ENOMEM;
	take_wake_signal();
	while (n < threads && ret == 0) {
		ret = -pthread_create(&ids[n], NULL, thread_main, d);
		n += ret == 0;
	}
	if (n == 0)
		return ret;
	while (sem_wait(&d->loop_ends) != 0)
		; /* EINTR */
	for (unsigned i = 0; i < n; i++)
		join(ids[i]);
	return 0;
}
