/* store_time.h - times in nanoseconds, signed: since 1970 as the store keeps them, or of a clock that only waits. */
#ifndef WFS_STORE_TIME_H
#define WFS_STORE_TIME_H

#include <stdint.h>
#include <time.h>

int64_t wfs_now_ns(void);
/* CLOCK_MONOTONIC: to measure and to wait by; nobody sets it. */
int64_t wfs_monotonic_ns(void);
struct timespec wfs_timespec(int64_t ns);
int64_t wfs_ns(const struct timespec *ts);

#endif
