#include "lib/store_time.h"

#define SECOND_NS 1000000000

int64_t wfs_ns(const struct timespec *ts)
{
	return (int64_t)ts->tv_sec * SECOND_NS + ts->tv_nsec;
}

struct timespec wfs_timespec(int64_t ns)
{
	struct timespec ts = { .tv_sec = ns / SECOND_NS, .tv_nsec = ns % SECOND_NS };

	if (ts.tv_nsec < 0) {
		ts.tv_nsec += SECOND_NS;
		ts.tv_sec--;
	}
	return ts;
}

int64_t wfs_now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_REALTIME, &now);
	return wfs_ns(&now);
}

int64_t wfs_monotonic_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return wfs_ns(&now);
}
