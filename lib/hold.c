#include "lib/hold.h"

#include <errno.h>
#include <fcntl.h>
#include <time.h>
#include <unistd.h>

#define BYTE ((off_t)1 << 40)
#define POLL_NS 10000000 /* 10 ms */
#define POLLS 3000       /* 30 s: to punch a large file can take that on a slow disk */

static int set_lock(int fd, short type)
{
	struct flock lock = { .l_type = type, .l_whence = SEEK_SET, .l_start = BYTE, .l_len = 1 };

	return fcntl(fd, F_OFD_SETLK, &lock) != 0 ? -errno : 0;
}

int wfs_hold_take(int dir_fd)
{
	const struct timespec moment = { .tv_nsec = POLL_NS };
	int fd = openat(dir_fd, "lock", O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
	int ret;

	if (fd < 0)
		return -errno;
	for (int i = 0; (ret = set_lock(fd, F_RDLCK)) == -EAGAIN && i < POLLS; i++)
		nanosleep(&moment, NULL);
	if (ret == 0)
		return fd;
	close(fd);
	return ret;
}

bool wfs_hold_enter(int lock_fd)
{
	return lock_fd < 0 || set_lock(lock_fd, F_WRLCK) != -EAGAIN;
}

void wfs_hold_leave(int lock_fd)
{
	if (lock_fd >= 0)
		set_lock(lock_fd, F_UNLCK);
}
