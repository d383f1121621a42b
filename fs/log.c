#include "fs/log.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include "lib/owner.h"

#define LOG_NAME "weightfs.log"
#define LOG_MAX (4u << 20)

void wfs_log_init(struct wfs_log *log)
{
	pthread_mutex_init(&log->lock, NULL);
	log->fd = -1;
	log->dir_fd = -1;
	log->size = 0;
}

/* In a store that others made, a fifo of that name would never be read from. -1 and errno. */
static int open_log(int dir_fd)
{
	int fd = openat(dir_fd, LOG_NAME,
		O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY, 0600);
	struct stat st;

	if (fd >= 0 && fstat(fd, &st) == 0 && S_ISREG(st.st_mode)) {
		wfs_owner_inherit(dir_fd, LOG_NAME);
		return fd;
	}
	if (fd < 0)
		return fd;
	close(fd);
	errno = EUCLEAN;
	return -1;
}

int wfs_log_to_file(struct wfs_log *log, const char *dir)
{
	int dir_fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	int fd = dir_fd >= 0 ? open_log(dir_fd) : -1;
	struct stat st;

	if (fd < 0) {
		int ret = -errno;

		if (dir_fd >= 0)
			close(dir_fd);
		return ret;
	}
	pthread_mutex_lock(&log->lock);
	log->fd = fd;
	log->dir_fd = dir_fd;
	log->size = fstat(fd, &st) == 0 ? (uint64_t)st.st_size : 0;
	pthread_mutex_unlock(&log->lock);
	return 0;
}

void wfs_log_release(struct wfs_log *log)
{
	if (log->fd >= 0)
		close(log->fd);
	if (log->dir_fd >= 0)
		close(log->dir_fd);
	pthread_mutex_destroy(&log->lock);
}

static void put_aside(struct wfs_log *log)
{
	int fd;

	if (renameat(log->dir_fd, LOG_NAME, log->dir_fd, LOG_NAME ".1") != 0)
		return;
	fd = open_log(log->dir_fd);
	if (fd < 0)
		return;
	close(log->fd);
	log->fd = fd;
	log->size = 0;
}

static size_t stamp(char *buf, size_t size)
{
	struct timespec now;
	struct tm tm;
	size_t len;

	clock_gettime(CLOCK_REALTIME, &now);
	localtime_r(&now.tv_sec, &tm);
	len = strftime(buf, size, "%Y-%m-%d %H:%M:%S", &tm);
	return len + (size_t)snprintf(buf + len, size - len, ".%03ld ", now.tv_nsec / 1000000);
}

void wfs_log_line(void *ctx, const char *text)
{
	struct wfs_log *log = ctx;
	char line[1200];
	size_t len = stamp(line, sizeof(line));
	ssize_t n;

	len += (size_t)snprintf(line + len, sizeof(line) - len, "%s", text);
	len = WFS_MIN(len, sizeof(line) - 2);
	for (size_t i = 0; i < len; i++)
		if ((unsigned char)line[i] < 0x20)
			line[i] = '?';
	line[len++] = '\n';
	pthread_mutex_lock(&log->lock);
	n = write(log->fd >= 0 ? log->fd : STDERR_FILENO, line, len);
	if (n > 0 && log->fd >= 0 && (log->size += (uint64_t)n) > LOG_MAX)
		put_aside(log);
	pthread_mutex_unlock(&log->lock);
}

void wfs_log(struct wfs_log *log, const char *fmt, ...)
{
	char text[1000];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	wfs_log_line(log, text);
}
