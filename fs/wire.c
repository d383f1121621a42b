/* fs/driver.h: answers as linux/fuse.h has them. */
#include <linux/fuse.h>
#include <string.h>

#include "fs/driver.h"
#include "fs/order.h"

/* The headers of older systems do not have them all. */
#define OPEN_NOFLUSH (1u << 5)     /* FOPEN_NOFLUSH, Linux 5.16 */
#define OPEN_PASSTHROUGH (1u << 7) /* FOPEN_PASSTHROUGH, Linux 6.9 */

/*
 * Of a file that was made in this moment the kernel asks the attributes again, to
 * see whether they allow what it is about to do, unless they are good for a moment.
 */
#define NEW_VALID_NS 10000000

static void fill_attr(const struct wfs_attr *a, struct fuse_attr *out)
{
	struct stat st;

	wfs_fill_stat(a, &st);
	*out = (struct fuse_attr){
		.ino = a->ino,
		.size = a->size,
		.blocks = a->blocks,
		.atime = (uint64_t)st.st_atim.tv_sec,
		.mtime = (uint64_t)st.st_mtim.tv_sec,
		.ctime = (uint64_t)st.st_ctim.tv_sec,
		.atimensec = (uint32_t)st.st_atim.tv_nsec,
		.mtimensec = (uint32_t)st.st_mtim.tv_nsec,
		.ctimensec = (uint32_t)st.st_ctim.tv_nsec,
		.mode = a->mode,
		.nlink = a->nlink,
		.uid = a->uid,
		.gid = a->gid,
		.blksize = (uint32_t)st.st_blksize,
	};
}

void wfs_wire_entry(struct wfs_driver *d, const struct wfs_attr *a, struct fuse_entry_out *ret)
{
	memset(ret, 0, sizeof(*ret));
	ret->nodeid = a->ino;
	ret->generation = 1; /* inode numbers are never used again */
	ret->attr_valid = (uint64_t)wfs_attr_seconds(d, a);
	ret->entry_valid = (uint64_t)WFS_CACHE_SECONDS;
	fill_attr(a, &ret->attr);
}

void wfs_wire_new_entry(struct wfs_driver *d, const struct wfs_attr *a, struct fuse_entry_out *ret)
{
	wfs_wire_entry(d, a, ret);
	if (ret->attr_valid == 0)
		ret->attr_valid_nsec = NEW_VALID_NS;
}

void wfs_wire_open(struct wfs_driver *d, const struct wfs_handle *h, struct fuse_open_out *ret)
{
	*ret = (struct fuse_open_out){ .fh = (uintptr_t)h };
	if (h->backing) {
		/* Without KEEP_CACHE the kernel drops its own pages, which would not follow direct writes. */
		ret->open_flags = OPEN_PASSTHROUGH;
		ret->padding = (uint32_t)h->backing; /* backing_id since protocol 7.40 */
	} else if (!wfs_inodes_take_stale(&d->inodes, wfs_file_ino(h->file))) {
		/* Every change of the bytes went through the kernel's own page cache. */
		ret->open_flags = FOPEN_KEEP_CACHE;
	}
	/* The gate has no question to who has only read. */
	if (!h->writes)
		ret->open_flags |= OPEN_NOFLUSH;
	wfs_order_leave(wfs_file_ino(h->file)); /* of a new file the request was for its directory */
}
