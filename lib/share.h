/*
 * share.h - blocks of the disk that two files have in common.
 *
 * XFS and btrfs let files share blocks, copied when one of them is written
 * (ioctl_fideduperange(2), ioctl_ficlonerange(2)). Only whole blocks can be shared,
 * at offsets that are congruent modulo the block size. Nothing here knows of
 * objects; no locks. Blocks on the disk: what is not written yet the kernel writes
 * first.
 */
#ifndef WFS_SHARE_H
#define WFS_SHARE_H

#include "lib/base.h"

/*
 * Of `length` bytes that stand at offset `a` in one file and at `b` in another:
 * how many are in blocks that can be shared, and with `ret_skip` (NULL is allowed)
 * how many bytes come before these. 0 where there are none.
 */
uint64_t wfs_share_inner(uint64_t block, uint64_t a, uint64_t b, uint64_t length,
	uint64_t *ret_skip);

/*
 * Let [to, to + length) of `to_fd` have the blocks of [from, from + length) of
 * `from_fd`, if the bytes are the same: the kernel compares them, with both files
 * locked. All offsets in whole blocks. Either descriptor may be open to read alone,
 * where the files are the caller's. 0; -EUCLEAN: the bytes differ;
 * -EOPNOTSUPP: not on this disk; other -errno. On error a part may be shared.
 */
int wfs_share_equal(int from_fd, uint64_t from, int to_fd, uint64_t to, uint64_t length);

/* The same without a look at what was in `to_fd`, which must be open to write. -EOPNOTSUPP as above. */
int wfs_share_clone(int from_fd, uint64_t from, int to_fd, uint64_t to, uint64_t length);

#endif
