/*
 * log.h - the driver's log: standard error in the foreground, else
 * STORE/weightfs.log, which is put aside as weightfs.log.1 past 4 MiB.
 */
#ifndef WFS_LOG_H
#define WFS_LOG_H

#include <pthread.h>

#include "lib/base.h"

struct wfs_log {
	pthread_mutex_t lock;
	/* under lock */
	int fd;          /* -1: standard error */
	int dir_fd;      /* of the store, for putting the log aside; -1 */
	uint64_t size;   /* bytes in the log */
};

void wfs_log_init(struct wfs_log *log);
/* From here on write to DIR/weightfs.log. -errno; the log stays where it was. */
int wfs_log_to_file(struct wfs_log *log, const char *dir);
void wfs_log_release(struct wfs_log *log);

/* One line, with the time before it. Any thread. */
void wfs_log(struct wfs_log *log, const char *fmt, ...) WFS_PRINTF(2, 3);
/* For struct wfs_store_options. */
void wfs_log_line(void *log, const char *line);

#endif
