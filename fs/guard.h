/*
 * guard.h - nobody hangs on a mount whose driver was killed.
 *
 * The kernel answers what waits for a driver when the last descriptor of the connection is
 * closed: at once, when the process dies. One thread can prevent that, which tells the kernel that
 * a name may be forgotten (fs/notify.h): it waits, not even SIGKILL ends that, for the
 * lock of a directory, and a program has that lock which waits for an answer.
 * So a second process, small and idle, is told by the kernel when the first thread of the driver has
 * ended (prctl(2), PR_SET_PDEATHSIG), and has the connection aborted
 * (Documentation/filesystems/fuse/fuse.rst: /sys/fs/fuse/connections). Where that is not to be
 * had (fusectl is not mounted), there is no guard.
 */
#ifndef WFS_GUARD_H
#define WFS_GUARD_H

#include <sys/types.h>

#include "lib/base.h"

/*
 * For the file system that is mounted at `mountpoint`, by its driver's first thread,
 * before there are others. The guard's pid, or -errno.
 */
pid_t wfs_guard_start(const char *mountpoint);
/* The mount is gone; no error is one too many. */
void wfs_guard_stop(pid_t guard);

#endif
