#include "lib/share.h"

#include <errno.h>
#include <linux/fs.h>
#include <sys/ioctl.h>

/* What one call compares; the kernel holds both files' locks meanwhile. btrfs takes no more at once. */
#define AT_ONCE (UINT64_C(16) << 20)

uint64_t wfs_share_inner(uint64_t block, uint64_t a, uint64_t b, uint64_t length,
	uint64_t *ret_skip)
{
	uint64_t skip, inner;

	if (block == 0 || a % block != b % block)
		return 0;
	skip = (block - a % block) % block;
	if (length <= skip)
		return 0;
	inner = (length - skip) / block * block;
	if (ret_skip)
		*ret_skip = skip;
	return inner;
}

/* -EOPNOTSUPP for each way of a disk to say that it does not know how. */
static int share_error(int err)
{
	return err == -EINVAL || err == -ENOTTY || err == -ENOSYS || err == -EXDEV ? -EOPNOTSUPP
										    : err;
}

/* Up to `length` bytes: how many are shared now (> 0), or -errno. */
static int64_t dedupe(int from_fd, uint64_t from, int to_fd, uint64_t to, uint64_t length)
{
	union {
		struct file_dedupe_range range;
		char room[sizeof(struct file_dedupe_range) + sizeof(struct file_dedupe_range_info)];
	} u = { .range = { .src_offset = from, .src_length = length, .dest_count = 1 } };
	struct file_dedupe_range_info *info = &u.range.info[0];

	info->dest_fd = to_fd;
	info->dest_offset = to;
	if (ioctl(from_fd, FIDEDUPERANGE, &u.range) != 0)
		return share_error(-errno);
	if (info->status == FILE_DEDUPE_RANGE_DIFFERS)
		return -EUCLEAN;
	if (info->status < 0)
		return share_error(info->status);
	return info->bytes_deduped > 0 ? (int64_t)info->bytes_deduped : -EIO;
}

int wfs_share_equal(int from_fd, uint64_t from, int to_fd, uint64_t to, uint64_t length)
{
	while (length > 0) {
		int64_t n = dedupe(from_fd, from, to_fd, to, WFS_MIN(length, AT_ONCE));

		if (n == -EINTR)
			continue;
		if (n < 0)
			return (int)n;
		from += (uint64_t)n;
		to += (uint64_t)n;
		length -= WFS_MIN(length, (uint64_t)n);
	}
	return 0;
}

int wfs_share_clone(int from_fd, uint64_t from, int to_fd, uint64_t to, uint64_t length)
{
	struct file_clone_range range = { .src_fd = from_fd, .src_offset = from,
		.src_length = length, .dest_offset = to };

	if (length == 0 || ioctl(to_fd, FICLONERANGE, &range) == 0)
		return 0;
	return share_error(-errno);
}
