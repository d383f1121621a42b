/*
 * sandbox.h - what a driver that root has mounted gives up before its first request: the
 * capabilities that a file server does not need, new privileges by executing a file, and
 * system calls that it never makes (docs/decisions/0019). An ordinary user's driver has no
 * privileges, and needs fusermount3, which is set-user-id: it gives up nothing.
 */
#ifndef WFS_SANDBOX_H
#define WFS_SANDBOX_H

/*
 * For the calling thread and those that it starts later. 0 or -errno: what could be
 * given up until then is. *ret_what is what failed.
 */
int wfs_sandbox_enter(const char **ret_what);

#endif
