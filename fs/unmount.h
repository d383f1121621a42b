/* unmount.h - the end of a mount when a signal asks for it. */
#ifndef WFS_UNMOUNT_H
#define WFS_UNMOUNT_H

#include <signal.h>

#include "fs/driver.h"

/* SIGINT, SIGTERM, SIGHUP: blocked in every thread, taken by the one below. */
void wfs_block_signals(sigset_t *ret);

/*
 * A thread that waits for one of these signals and then unmounts, while the
 * loop goes on serving what the kernel still has to write. Where somebody has
 * files open it flushes, detaches the mount and ends the loop.
 */
int wfs_signal_thread_start(struct wfs_driver *d, pthread_t *ret);
void wfs_signal_thread_stop(pthread_t thread);

/* Take a mount out of the tree, in use or not. 0 or -errno. */
int wfs_detach(const char *mountpoint);

#endif
