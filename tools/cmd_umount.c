/*
 * cmd_umount.c - `weightfs umount DIR`: unmount, and wait until the driver has
 * closed the store, so that whoever runs next finds it whole and free.
 */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/pidfd.h>
#include <sys/wait.h>
#include <time.h>

#include "lib/store.h"
#include "tools/command.h"
#include "tools/target.h"
#include "tools/ui.h"

#define POLL_NS (5 * 1000 * 1000)
#define PATIENCE_POLLS 400 /* about two seconds; then say what is waited for */
#define EXIT_MS 2000       /* for a driver that has closed its store to exit */

static const char busy_hint[] =
	"programs have files open or work in it (fuser -vm DIR names them); -l unmounts it from "
	"sight now";

/* Run fusermount3 -u; what it says on stderr goes to `said`. Its exit status, or -errno. */
static int run_fusermount(const char *mountpoint, bool lazy, char *said, size_t size)
{
	WFS_AUTO_CLOSE int out = -1;
	int fds[2], status;
	size_t n = 0;
	ssize_t got;
	pid_t pid;

	if (pipe2(fds, O_CLOEXEC) < 0)
		return -errno;
	out = fds[0];
	pid = fork();
	if (pid == 0) {
		dup2(fds[1], STDERR_FILENO);
		execlp("fusermount3", "fusermount3", lazy ? "-uz" : "-u", "--", mountpoint,
			(char *)NULL);
		_exit(127);
	}
	close(fds[1]);
	if (pid < 0)
		return -errno;
	while (n < size - 1 && (got = read(out, said + n, size - 1 - n)) > 0)
		n += (size_t)got;
	said[n] = 0;
	said[strcspn(said, "\n")] = 0;
	if (waitpid(pid, &status, 0) < 0)
		return -errno;
	return WIFEXITED(status) ? WEXITSTATUS(status) : -EINTR;
}

static int unmount_as_user(const char *mountpoint, bool lazy)
{
	char said[512];
	int ret = run_fusermount(mountpoint, lazy, said, sizeof(said));

	if (ret == 0)
		return 0;
	if (ret == 127)
		return ui_error("install fuse3, or run as root", "fusermount3: command not found");
	if (ret < 0)
		return ui_error(NULL, "fusermount3: %s", strerror(-ret));
	return ui_error(strstr(said, "busy") ? busy_hint : NULL, "%s",
		*said ? said : "fusermount3 could not unmount it");
}

static int unmount(const char *mountpoint, bool lazy)
{
	if (umount2(mountpoint, UMOUNT_NOFOLLOW | (lazy ? MNT_DETACH : 0)) == 0)
		return 0;
	if (errno == EPERM)
		return unmount_as_user(mountpoint, lazy);
	return ui_error(errno == EBUSY ? busy_hint : NULL, "%s: %s", mountpoint, strerror(errno));
}

/* Is the file system `device` still mounted somewhere, say by a bind mount? */
static bool is_still_mounted(const char *device)
{
	struct target_mounts mounts;
	bool found = false;

	if (target_mounts_read(&mounts) != 0)
		return false;
	for (size_t i = 0; i < mounts.n && !found; i++)
		found = !strcmp(mounts.list[i].device, device);
	target_mounts_release(&mounts);
	return found;
}

/*
 * Wait until the store's lock is free, or another driver's than `driver` (0:
 * unknown). As long as it takes: what was written last is being sealed.
 */
static void wait_for_lock(const char *store, int driver)
{
	const struct timespec pause = { .tv_nsec = POLL_NS };
	int pid = 0;

	for (unsigned i = 0; wfs_store_is_locked(store, &pid); i++) {
		if (driver && pid && pid != driver)
			return;
		if (i == PATIENCE_POLLS && wfs_store_is_ending(store))
			fprintf(stderr, "waiting until what was written last is sealed ...\n");
		else if (i == PATIENCE_POLLS)
			fprintf(stderr, "waiting for process %d: it still serves the mount elsewhere, for a "
					"container or another mount namespace (findmnt -N PID) ...\n",
				pid);
		nanosleep(&pause, NULL);
	}
}

/*
 * The same, and for the end of the process. A pid may belong to another
 * namespace and so to somebody else, hence the limit.
 */
static void wait_for_driver(const char *store, int driver, int pidfd)
{
	struct pollfd p = { .fd = pidfd, .events = POLLIN };

	wait_for_lock(store, driver);
	if (pidfd >= 0)
		poll(&p, 1, EXIT_MS);
}

static int refuse(const char *dir, const struct target_mounts *mounts, const char *path)
{
	const struct target_mount *m = target_mounts_of_path(mounts, path);

	if (m && !strcmp(m->fstype, TARGET_FSTYPE)) {
		WFS_AUTO_FREE char *hint = ui_format("it is in the mount at %s", m->mountpoint);

		return ui_error(hint, "%s: not a mount point", dir);
	}
	m = target_mounts_of_store(mounts, path);
	if (m) {
		WFS_AUTO_FREE char *hint = ui_format("it is mounted at %s", m->mountpoint);

		return ui_error(hint, "%s: a store, not a mount point", dir);
	}
	return ui_error(NULL, "%s: no weightfs is mounted here", dir);
}

static int umount_dir(const char *dir, bool lazy)
{
	WFS_AUTO_FREE char *path = target_absolute(dir);
	const struct target_mount *m;
	WFS_AUTO_CLOSE int pidfd = -1;
	struct target_mounts mounts;
	int ret, driver = 0;

	if (target_mounts_read(&mounts) != 0)
		return 1;
	m = target_mounts_of_path(&mounts, path);
	if (!m || strcmp(m->fstype, TARGET_FSTYPE) || strcmp(m->mountpoint, path)) {
		ret = refuse(dir, &mounts, path);
	} else {
		if (!wfs_store_is_locked(m->source, &driver))
			driver = 0;
		if (driver > 0)
			pidfd = pidfd_open(driver, 0);
		ret = unmount(m->mountpoint, lazy);
		if (ret == 0 && !lazy && !is_still_mounted(m->device))
			wait_for_driver(m->source, driver, pidfd);
	}
	target_mounts_release(&mounts);
	return ret;
}

static int run(const struct command *self, int argc, char **argv)
{
	static const struct option options[] = {
		{ "lazy", no_argument, NULL, 'l' },
		{ "help", no_argument, NULL, 'h' },
		{ 0 },
	};
	bool lazy = false;
	int opt;

	while ((opt = getopt_long(argc, argv, "lh", options, NULL)) != -1) {
		if (opt != 'l')
			return command_other_option(self, opt);
		lazy = true;
	}
	if (argc - optind == 1)
		return umount_dir(argv[optind], lazy);
	ui_error(NULL, "umount: one directory is needed");
	return command_usage(self);
}

const struct command command_umount = {
	.name = "umount",
	.summary = "unmount, and wait until the store is closed",
	.run = run,
	.help = "usage: weightfs umount [-l] DIR\n"
		"\n"
		"Unmounts the weightfs that is mounted at DIR and returns when its driver has\n"
		"sealed what was written last, made it durable and closed the store.\n"
		"\n"
		"  -l, --lazy  take it from sight at once, also while programs use it; the\n"
		"              driver ends when the last of them does. Does not wait\n"
		"\n"
		"example:\n"
		"  weightfs umount ~/models\n",
};
