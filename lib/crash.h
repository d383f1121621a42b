/*
 * crash.h - places at which a test ends the process.
 *
 * WEIGHTFS_CRASH_AT=POINT[:N] in the environment: the process kills itself (SIGKILL) when it passes
 * POINT for the N-th time. The points are where a crash or a power cut leaves work
 * for recovery: before and after each transaction of the lifecycle, and what is done
 * to the disk between them. They are in every build, so that what is tested is what
 * is used; without the variable a point is a call that returns at once.
 */
#ifndef WFS_CRASH_H
#define WFS_CRASH_H

/* Any thread, under any lock. */
void wfs_crash_at(const char *point);

#endif
