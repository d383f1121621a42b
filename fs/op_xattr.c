#include <errno.h>
#include <string.h>

#include "fs/driver.h"

/* Where the model cannot be cut by it, it stays as it was. */
static int set_shard_size(
	struct wfs_driver *d, uint64_t ino, const char *value, size_t size, int flags)
{
	WFS_AUTO_FREE void *old = NULL;
	size_t old_size;
	int had = wfs_xattr_get(d->store, ino, WFS_XATTR_MAX_SHARD_SIZE, &old, &old_size);
	int err = wfs_xattr_set(d->store, ino, WFS_XATTR_MAX_SHARD_SIZE, value, size, flags);

	if (!err)
		err = wfs_view_reshard(d, ino);
	else
		return err;
	if (err && had == 0)
		wfs_xattr_set(d->store, ino, WFS_XATTR_MAX_SHARD_SIZE, old, old_size, 0);
	else if (err)
		wfs_xattr_remove(d->store, ino, WFS_XATTR_MAX_SHARD_SIZE);
	return err;
}

void wfs_op_setxattr(fuse_req_t req, fuse_ino_t ino, const char *name, const char *value,
	size_t size, int flags)
{
	struct wfs_driver *d = wfs_driver_of(req);

	if (strcmp(name, WFS_XATTR_MAX_SHARD_SIZE) == 0)
		fuse_reply_err(req, -set_shard_size(d, ino, value, size, flags));
	else
		fuse_reply_err(req, -wfs_xattr_set(d->store, ino, name, value, size, flags));
}

void wfs_op_removexattr(fuse_req_t req, fuse_ino_t ino, const char *name)
{
	fuse_reply_err(req, -wfs_xattr_remove(wfs_driver_of(req)->store, ino, name));
}

void wfs_reply_xattr(fuse_req_t req, int err, const void *bytes, size_t have, size_t size)
{
	if (err)
		fuse_reply_err(req, -err);
	else if (size == 0)
		fuse_reply_xattr(req, have);
	else if (have > size)
		fuse_reply_err(req, ERANGE);
	else
		fuse_reply_buf(req, bytes, have);
}

void wfs_op_getxattr(fuse_req_t req, fuse_ino_t ino, const char *name, size_t size)
{
	WFS_AUTO_FREE void *value = NULL;
	size_t have = 0;
	int err = wfs_xattr_get(wfs_driver_of(req)->store, ino, name, &value, &have);

	wfs_reply_xattr(req, err, value, have, size);
}

void wfs_op_listxattr(fuse_req_t req, fuse_ino_t ino, size_t size)
{
	WFS_AUTO_FREE char *list = NULL;
	size_t have = 0;
	int err = wfs_xattr_list(wfs_driver_of(req)->store, ino, &list, &have);

	wfs_reply_xattr(req, err, list, have, size);
}
