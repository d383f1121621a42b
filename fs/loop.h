/*
 * loop.h - the threads that take requests from the kernel and serve them.
 *
 * Our own, not libfuse's, because requests that libfuse does not know are taken
 * out before it sees them (op_tmpfile.c).
 */
#ifndef WFS_LOOP_H
#define WFS_LOOP_H

#include "fs/driver.h"

/*
 * Serve until the mount is gone or fuse_session_exit is called and
 * wfs_loop_wake; every thread has ended then. 0, or -errno if none could be
 * started.
 */
int wfs_loop_run(struct wfs_driver *d, unsigned threads);
/* After fuse_session_exit: have wfs_loop_run end its threads. From any thread. */
void wfs_loop_wake(struct wfs_driver *d);

/* Signal that makes a thread of the loop look at fuse_session_exited; no handler of others. */
#define WFS_LOOP_SIGNAL SIGUSR1

#endif
