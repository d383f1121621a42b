/* common.h - what the programs of the benchmark share: time, numbers, failing. */
#ifndef BENCH_COMMON_H
#define BENCH_COMMON_H

#include <err.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096

/* Seconds of the clock that Python's time.monotonic() reads, too. */
static inline double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

/* splitmix64 */
static inline uint64_t next_random(uint64_t *state)
{
	*state += UINT64_C(0x9e3779b97f4a7c15);
	uint64_t z = *state;

	z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
	z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
	return z ^ (z >> 31);
}

static inline uint64_t number(const char *text)
{
	char *end;
	uint64_t n = strtoull(text, &end, 10);

	if (*end || end == text)
		errx(2, "%s: not a number", text);
	return n;
}

static inline int open_or_die(const char *path, int flags)
{
	int fd = open(path, flags | O_CLOEXEC, 0644);

	if (fd < 0)
		err(1, "%s", path);
	return fd;
}

static inline uint64_t size_of(int fd)
{
	struct stat st;

	if (fstat(fd, &st) != 0)
		err(1, "fstat");
	return (uint64_t)st.st_size;
}

/* Memory that starts at a page, and was touched. */
static inline void *block_of(size_t size)
{
	void *p;

	if (posix_memalign(&p, PAGE, size) != 0)
		errx(1, "no memory");
	memset(p, 1, size);
	return p;
}

static inline void write_or_die(int fd, const void *data, size_t size)
{
	const char *at = data;

	while (size > 0) {
		ssize_t n = write(fd, at, size);

		if (n < 0)
			err(1, "write");
		at += n;
		size -= (size_t)n;
	}
}

#endif
