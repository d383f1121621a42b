#include "fs/unmount.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <spawn.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/wait.h>
#include <unistd.h>

#include "fs/loop.h"

void wfs_block_signals(sigset_t *ret)
{
	sigemptyset(ret);
	sigaddset(ret, SIGINT);
	sigaddset(ret, SIGTERM);
	sigaddset(ret, SIGHUP);
	pthread_sigmask(SIG_BLOCK, ret, NULL);
	signal(SIGPIPE, SIG_IGN);
}

/* What an ordinary user unmounts with. */
static int run_fusermount(const char *mountpoint, bool lazy)
{
	const char *argv[] = { "fusermount3", "-u", "-q", lazy ? "-z" : "--", mountpoint, NULL };
	int status;
	pid_t pid;
	int ret = -posix_spawnp(&pid, argv[0], NULL, NULL, (char *const *)argv, environ);

	if (ret)
		return ret;
	while (waitpid(pid, &status, 0) < 0)
		if (errno != EINTR)
			return -errno;
	return WIFEXITED(status) && WEXITSTATUS(status) == 0 ? 0 : -EBUSY;
}

static int unmount(const char *mountpoint, bool lazy)
{
	if (geteuid() != 0)
		return run_fusermount(mountpoint, lazy);
	return umount2(mountpoint, UMOUNT_NOFOLLOW | (lazy ? MNT_DETACH : 0)) != 0 ? -errno : 0;
}

int wfs_detach(const char *mountpoint)
{
	return unmount(mountpoint, true);
}

/* Pages that a shared mapping dirtied reach us only when the kernel is asked. */
static void flush_mappings(struct wfs_driver *d)
{
	int fd = open(d->mountpoint, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

	if (fd < 0)
		return;
	if (syncfs(fd) != 0)
		wfs_log(&d->log, "flushing %s: %s", d->mountpoint, strerror(errno));
	close(fd);
}

static void end_mount(struct wfs_driver *d, int sig)
{
	int ret = unmount(d->mountpoint, false);

	wfs_log(&d->log, "signal %d: unmounting %s", sig, d->mountpoint);
	d->is_unmounted = ret == 0;
	if (ret == 0)
		return; /* the loop sees that the mount is gone */
	wfs_log(&d->log, "%s is in use (%s): detaching it", d->mountpoint, strerror(-ret));
	flush_mappings(d);
	ret = unmount(d->mountpoint, true);
	d->is_unmounted = ret == 0;
	if (ret)
		wfs_log(&d->log, "%s cannot be detached: %s", d->mountpoint, strerror(-ret));
	/* A program may have the lock of a directory that a notification waits for, and needs an answer first. */
	wfs_notify_stop(&d->notify);
	fuse_session_exit(d->session);
	wfs_loop_wake(d);
}

static void *signal_main(void *ctx)
{
	sigset_t set;
	int sig;

	wfs_block_signals(&set);
	while (sigwait(&set, &sig) != 0)
		;
	/* From here on it is waited for: cancelled in the log, it would keep its lock. */
	pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, NULL);
	end_mount(ctx, sig);
	return NULL;
}

int wfs_signal_thread_start(struct wfs_driver *d, pthread_t *ret)
{
	return -pthread_create(ret, NULL, signal_main, d);
}

void wfs_signal_thread_stop(pthread_t thread)
{
	pthread_cancel(thread); /* in sigwait, unless it is ending the mount itself */
	pthread_join(thread, NULL);
}

bool wfs_is_dead_mount(const char *path)
{
	struct statx st;

	/* What the kernel remembers of the root it would tell for a dead driver, too. */
	return statx(AT_FDCWD, path, AT_STATX_FORCE_SYNC, STATX_BASIC_STATS, &st) != 0 &&
	       (errno == ENOTCONN || errno == ECONNABORTED);
}
