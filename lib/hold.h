/*
 * hold.h - a backup keeps the collector of a mounted store away.
 *
 * Both lock one byte of STORE/lock, far behind its text, for a process of their own
 * (fcntl(2), open file description locks): a backup to read, for as long as it runs;
 * the collector to write, for as long as it removes, punches or empties one data file.
 * So either sees the other, and what a killed process held is free.
 */
#ifndef WFS_HOLD_H
#define WFS_HOLD_H

#include <stdbool.h>

/*
 * Take the hold on the store in `dir_fd`; waits for the data file that the collector is
 * at. A descriptor, to be closed; -errno where there can be none (no lock file yet, or a
 * disk without such locks): then nothing is held.
 */
int wfs_hold_take(int dir_fd);

/* For the collector, with its descriptor of STORE/lock: false if somebody has the hold. */
bool wfs_hold_enter(int lock_fd);
void wfs_hold_leave(int lock_fd);

#endif
