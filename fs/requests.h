/*
 * requests.h - which requests the driver is at, for anybody who looks: its own watchdog
 * (fs/watchdog.h) and `weightfs status`, a process of its own.
 *
 * A slot for each thread of the loop lies in memory that the driver shares by a
 * descriptor alone (memfd); /proc/PID/fd leads other processes of the same user, and
 * root, to it. So it can be read though the driver hangs or is stopped. A request costs
 * a few plain stores and a look at the kernel's coarse clock.
 *
 * A slot is written by its thread only. Who reads it may see a part of the next request:
 * `since_ns` is read before and after.
 */
#ifndef WFS_REQUESTS_H
#define WFS_REQUESTS_H

#include <stdatomic.h>
#include <sys/types.h>

#include "lib/base.h"

#define WFS_REQUESTS_MAGIC UINT64_C(0x5746535251303031) /* "WFSRQ001" */
#define WFS_REQUESTS_NAME "weightfs-requests"
#define WFS_REQUEST_SLOTS 32
#define WFS_REQUEST_SLOW_NS INT64_C(5000000000) /* from here on it hangs */

struct wfs_request_slot {
	_Atomic int64_t since_ns; /* CLOCK_MONOTONIC_COARSE when it came; 0: none */
	_Atomic uint64_t ino;
	atomic_uint opcode;       /* enum fuse_opcode */
	atomic_uint caller;       /* its pid, 0 unknown */
	atomic_int tid;           /* of the thread */
	atomic_bool is_reported;  /* by the watchdog: its end is logged, too */
	char pad[96];             /* threads write no line of another's */
};

struct wfs_requests {
	uint64_t magic;
	_Atomic uint64_t db_lock; /* address of the database's lock in the driver */
	char pad[112];
	struct wfs_request_slot slots[WFS_REQUEST_SLOTS];
};

/* What was seen of one slot. */
struct wfs_request {
	int64_t since_ns;
	uint64_t ino;
	unsigned opcode, caller;
	int tid;
};

/* Shared memory for the driver; NULL with errno set. */
struct wfs_requests *wfs_requests_new(void);
/* That of the process `pid`, to be read. NULL: it has none, or is not ours to see. */
struct wfs_requests *wfs_requests_of(pid_t pid);
void wfs_requests_free(struct wfs_requests *r);

/* By a thread of the loop, around a request as the kernel sent it. */
void wfs_request_begin(struct wfs_request_slot *slot, const void *request, size_t size);
static inline void wfs_request_end(struct wfs_request_slot *slot)
{
	atomic_store_explicit(&slot->since_ns, 0, memory_order_relaxed);
}

int64_t wfs_requests_now(void);
/* False: the slot has none, or another one by now. */
bool wfs_request_look(struct wfs_request_slot *slot, struct wfs_request *ret);

/* "WRITE, inode 12, by process 34 (cp)". `path` may be NULL. */
#define WFS_REQUEST_TEXT 400
void wfs_request_describe(const struct wfs_request *r, const char *path, char text[WFS_REQUEST_TEXT]);
const char *wfs_request_name(unsigned opcode);
void wfs_request_caller_name(const struct wfs_request *r, char name[32]);

/*
 * What its thread, of the process `pid`, waits for just now, as far as the kernel tells: "the database's
 * lock", "a lock", "the disk: fdatasync of PATH", "nothing: it runs".
 */
void wfs_request_waits_for(const struct wfs_requests *all, pid_t pid, const struct wfs_request *r,
	char text[WFS_REQUEST_TEXT]);

#endif
