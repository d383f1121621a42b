/*
 * order.h - what the kernel orders, told to the thread sanitizer.
 *
 * A handle goes from the thread that answers its open to those that serve what comes
 * with it, without a lock: a program has a descriptor only after the answer, and its
 * release is sent after everything else was answered. The sanitizer would take that from
 * reads and writes of the device, but it takes all files for one: whatever came before
 * any write of any file would be in order with all that comes after a read of another,
 * and races between them would not be seen. That is off (io_sync=0 in tools/run_tests.sh),
 * and what holds is said here, for the requests of one inode and no more. In other
 * builds: nothing.
 */
#ifndef WFS_ORDER_H
#define WFS_ORDER_H

#include <stddef.h>
#include <stdint.h>

#ifdef __SANITIZE_THREAD__
#define WFS_ORDER_IS_TOLD 1

/* This thread has received a request, as the kernel sent it. */
void wfs_order_request(const void *request, size_t size);
/* It is about to answer it. */
void wfs_order_answer(void);
/* It has a handle of this inode, which is not the one that the request is for. */
void wfs_order_enter(uint64_t ino);
/* And that handle may be used elsewhere as soon as the request is answered. */
void wfs_order_leave(uint64_t ino);

#else
#define WFS_ORDER_IS_TOLD 0

static inline void wfs_order_request(const void *request, size_t size)
{
	(void)request;
	(void)size;
}

static inline void wfs_order_answer(void)
{
}

static inline void wfs_order_enter(uint64_t ino)
{
	(void)ino;
}

static inline void wfs_order_leave(uint64_t ino)
{
	(void)ino;
}

#endif

#endif
