/* store_time.h - times as the store keeps them: nanoseconds since 1970, signed. */
#ifndef WFS_STORE_TIME_H
#define WFS_STORE_TIME_H

#include <stdint.h>
#include <time.h>

int64_t wfs_now_ns(void);
struct timespec wfs_timespec(int64_t ns);
int64_t wfs_ns(const struct timespec *ts);

#endif
