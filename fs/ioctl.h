/*
 * ioctl.h - what the command asks of the driver of a mounted store, by ioctl(2) on a
 * file of the mount. The kernel passes it on; structures are of fixed size and are
 * copied in and out by it.
 */
#ifndef WFS_IOCTL_H
#define WFS_IOCTL_H

#include <stdint.h>
#include <sys/ioctl.h>

/*
 * Make the file whole again: a step of it for each call, until it is done. What is
 * half done when the descriptor is closed is dropped. A descriptor that is open to read
 * is enough; root, who mounted and who owns the file may. Errors:
 *   EPERM     another user
 *   EROFS     the mount only reads
 *   EAGAIN    the file is dirty, and will be sealed: try again
 *   ETXTBSY   somebody writes it
 *   ENOSPC    no room for the copy
 *   EBUSY     another thread is in such a call for this descriptor
 *   EIO       bytes of the file cannot be read
 */
#define WFS_IOC_REPACK _IOR(0x57, 1, struct wfs_ioc_repack)

enum wfs_ioc_repack_state {
	WFS_IOC_REPACK_MORE,     /* call again */
	WFS_IOC_REPACK_DONE,     /* it is whole now */
	WFS_IOC_REPACK_NOTHING,  /* it was whole, or is small and in the database, or empty */
};

struct wfs_ioc_repack {
	uint64_t done, total; /* bytes of the file; 0 where there was nothing to do */
	uint64_t copied;      /* bytes of those done that were written; the rest shares blocks */
	uint32_t state;       /* enum wfs_ioc_repack_state */
	uint32_t reserved;    /* 0 */
};

/*
 * What `weightfs verify` has found in the store behind the mount: objects are marked as
 * damaged, or their marks taken away, where they still live where they were found; whole
 * copies with wrong bytes are dropped. On any directory of the mount; root and who mounted may. Errors:
 *   EPERM, EROFS, EINVAL
 */
#define WFS_IOC_DAMAGE _IOWR(0x57, 2, struct wfs_ioc_damage)
#define WFS_IOC_DAMAGE_MAX 64

struct wfs_ioc_damage {
	uint32_t n;       /* of list[] */
	uint32_t changed; /* answer: how many made a difference */
	struct {
		uint64_t object;
		uint64_t data_file, offset; /* where it was found; data_file 0: in the database */
		uint64_t good_file, good_at; /* a whole copy that has its bytes; good_file 0: none */
		uint64_t copy_of;           /* not 0: the manifest whose whole copy data_file is */
		uint32_t reason;            /* enum wfs_damage_reason */
		uint32_t reserved;          /* 0 */
	} list[WFS_IOC_DAMAGE_MAX];
};

#endif
