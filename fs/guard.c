#include "fs/guard.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define DEATH SIGUSR1

/* The kernel knows the device without asking the driver, which does not serve yet. */
static int open_abort(const char *mountpoint)
{
	struct statx st;
	char path[64];
	int fd;

	if (statx(AT_FDCWD, mountpoint, AT_STATX_DONT_SYNC | AT_SYMLINK_NOFOLLOW, STATX_TYPE, &st) != 0)
		return -errno;
	snprintf(path, sizeof(path), "/sys/fs/fuse/connections/%u/abort", st.stx_dev_minor);
	fd = open(path, O_WRONLY | O_CLOEXEC);
	return fd < 0 ? -errno : fd;
}

/* Nothing of the driver's stays open here: least of all the connection. */
static void keep_only(int fd)
{
	if (fd > 0)
		close_range(0, (unsigned)fd - 1, 0);
	close_range((unsigned)fd + 1, ~0U, 0);
}

static __attribute__((noreturn)) void guard(pid_t driver, int abort_fd)
{
	sigset_t set;
	int sig;

	sigemptyset(&set);
	sigaddset(&set, DEATH);
	sigprocmask(SIG_BLOCK, &set, NULL);
	prctl(PR_SET_PDEATHSIG, DEATH);
	prctl(PR_SET_NAME, "weightfs-guard");
	keep_only(abort_fd);
	/* It still is the parent when its first thread has ended, and others have not. */
	if (getppid() == driver)
		sigwait(&set, &sig);
	_exit(write(abort_fd, "1", 1) == 1 ? 0 : 1);
}

pid_t wfs_guard_start(const char *mountpoint)
{
	pid_t driver = getpid(), pid;
	int fd = open_abort(mountpoint);

	if (fd < 0)
		return fd;
	pid = fork();
	if (pid == 0)
		guard(driver, fd);
	if (pid < 0)
		pid = -errno;
	close(fd);
	return pid;
}

void wfs_guard_stop(pid_t pid)
{
	if (pid <= 0)
		return;
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
}
