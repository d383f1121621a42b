/*
 * Which requests are about the store, and which about what is only shown (fs/view.h): the
 * number of the inode says it. The table of operations that libfuse gets.
 */
#include "fs/driver.h"

static void route_lookup(fuse_req_t req, fuse_ino_t parent, const char *name)
{
	if (wfs_is_view(parent))
		wfs_view_op_lookup(req, parent, name);
	else
		wfs_op_lookup(req, parent, name);
}

static void route_getattr(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	if (wfs_is_view(ino))
		wfs_view_op_getattr(req, ino, fi);
	else
		wfs_op_getattr(req, ino, fi);
}

static void route_setattr(
	fuse_req_t req, fuse_ino_t ino, struct stat *attr, int to_set, struct fuse_file_info *fi)
{
	if (wfs_is_view(ino))
		wfs_view_op_setattr(req, ino, attr, to_set, fi);
	else
		wfs_op_setattr(req, ino, attr, to_set, fi);
}

static void route_mknod(
	fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode, dev_t rdev)
{
	if (wfs_is_view(parent))
		wfs_view_op_mknod(req, parent, name, mode, rdev);
	else
		wfs_op_mknod(req, parent, name, mode, rdev);
}

static void route_mkdir(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode)
{
	if (wfs_is_view(parent))
		wfs_view_op_mkdir(req, parent, name, mode);
	else
		wfs_op_mkdir(req, parent, name, mode);
}

static void route_unlink(fuse_req_t req, fuse_ino_t parent, const char *name)
{
	if (wfs_is_view(parent))
		wfs_view_op_unlink(req, parent, name);
	else
		wfs_op_unlink(req, parent, name);
}

static void route_rmdir(fuse_req_t req, fuse_ino_t parent, const char *name)
{
	if (wfs_is_view(parent))
		wfs_view_op_rmdir(req, parent, name);
	else
		wfs_op_rmdir(req, parent, name);
}

static void route_symlink(fuse_req_t req, const char *target, fuse_ino_t parent, const char *name)
{
	if (wfs_is_view(parent))
		wfs_view_op_symlink(req, target, parent, name);
	else
		wfs_op_symlink(req, target, parent, name);
}

static void route_rename(fuse_req_t req, fuse_ino_t parent, const char *name, fuse_ino_t newparent,
	const char *newname, unsigned int flags)
{
	if (wfs_is_view(parent) || wfs_is_view(newparent))
		wfs_view_op_rename(req, parent, name, newparent, newname, flags);
	else
		wfs_op_rename(req, parent, name, newparent, newname, flags);
}

static void route_link(fuse_req_t req, fuse_ino_t ino, fuse_ino_t newparent, const char *newname)
{
	if (wfs_is_view(ino) || wfs_is_view(newparent))
		wfs_view_op_link(req, ino, newparent, newname);
	else
		wfs_op_link(req, ino, newparent, newname);
}

static void route_open(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	if (wfs_is_view(ino))
		wfs_view_op_open(req, ino, fi);
	else
		wfs_op_open(req, ino, fi);
}

static void route_create(
	fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode, struct fuse_file_info *fi)
{
	if (wfs_is_view(parent))
		wfs_view_op_create(req, parent, name, mode, fi);
	else
		wfs_op_create(req, parent, name, mode, fi);
}

static void route_read(
	fuse_req_t req, fuse_ino_t ino, size_t size, off_t off, struct fuse_file_info *fi)
{
	if (wfs_is_view(ino))
		wfs_view_op_read(req, ino, size, off, fi);
	else
		wfs_op_read(req, ino, size, off, fi);
}

static void route_flush(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	if (wfs_is_view(ino))
		wfs_view_op_flush(req, ino, fi);
	else
		wfs_op_flush(req, ino, fi);
}

static void route_release(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	if (wfs_is_view(ino))
		wfs_view_op_release(req, ino, fi);
	else
		wfs_op_release(req, ino, fi);
}

static void route_fsync(fuse_req_t req, fuse_ino_t ino, int datasync, struct fuse_file_info *fi)
{
	if (wfs_is_view(ino))
		wfs_view_op_fsync(req, ino, datasync, fi);
	else
		wfs_op_fsync(req, ino, datasync, fi);
}

static void route_lseek(
	fuse_req_t req, fuse_ino_t ino, off_t off, int whence, struct fuse_file_info *fi)
{
	if (wfs_is_view(ino))
		wfs_view_op_lseek(req, ino, off, whence, fi);
	else
		wfs_op_lseek(req, ino, off, whence, fi);
}

static void route_copy_file_range(fuse_req_t req, fuse_ino_t ino_in, off_t off_in,
	struct fuse_file_info *fi_in, fuse_ino_t ino_out, off_t off_out,
	struct fuse_file_info *fi_out, size_t len, int flags)
{
	if (wfs_is_view(ino_in) || wfs_is_view(ino_out))
		wfs_view_op_copy_file_range(
			req, ino_in, off_in, fi_in, ino_out, off_out, fi_out, len, flags);
	else
		wfs_op_copy_file_range(
			req, ino_in, off_in, fi_in, ino_out, off_out, fi_out, len, flags);
}

static void route_opendir(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	if (wfs_is_view(ino))
		wfs_view_op_opendir(req, ino, fi);
	else
		wfs_op_opendir(req, ino, fi);
}

static void route_readdir(
	fuse_req_t req, fuse_ino_t ino, size_t size, off_t off, struct fuse_file_info *fi)
{
	if (wfs_is_view(ino))
		wfs_view_op_readdir(req, ino, size, off, fi);
	else
		wfs_op_readdir(req, ino, size, off, fi);
}

static void route_readdirplus(
	fuse_req_t req, fuse_ino_t ino, size_t size, off_t off, struct fuse_file_info *fi)
{
	if (wfs_is_view(ino))
		wfs_view_op_readdirplus(req, ino, size, off, fi);
	else
		wfs_op_readdirplus(req, ino, size, off, fi);
}

static void route_releasedir(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	if (wfs_is_view(ino))
		wfs_view_op_releasedir(req, ino, fi);
	else
		wfs_op_releasedir(req, ino, fi);
}

static void route_fsyncdir(fuse_req_t req, fuse_ino_t ino, int datasync, struct fuse_file_info *fi)
{
	if (wfs_is_view(ino))
		wfs_view_op_fsyncdir(req, ino, datasync, fi);
	else
		wfs_op_fsyncdir(req, ino, datasync, fi);
}

static void route_setxattr(
	fuse_req_t req, fuse_ino_t ino, const char *name, const char *value, size_t size, int flags)
{
	if (wfs_is_view(ino))
		wfs_view_op_setxattr(req, ino, name, value, size, flags);
	else
		wfs_op_setxattr(req, ino, name, value, size, flags);
}

static void route_getxattr(fuse_req_t req, fuse_ino_t ino, const char *name, size_t size)
{
	if (wfs_is_view(ino))
		wfs_view_op_getxattr(req, ino, name, size);
	else
		wfs_op_getxattr(req, ino, name, size);
}

static void route_listxattr(fuse_req_t req, fuse_ino_t ino, size_t size)
{
	if (wfs_is_view(ino))
		wfs_view_op_listxattr(req, ino, size);
	else
		wfs_op_listxattr(req, ino, size);
}

static void route_removexattr(fuse_req_t req, fuse_ino_t ino, const char *name)
{
	if (wfs_is_view(ino))
		wfs_view_op_removexattr(req, ino, name);
	else
		wfs_op_removexattr(req, ino, name);
}

static void route_ioctl(fuse_req_t req, fuse_ino_t ino, unsigned int cmd, void *arg,
	struct fuse_file_info *fi, unsigned int flags, const void *in, size_t in_size,
	size_t out_size)
{
	if (wfs_is_view(ino))
		wfs_view_op_ioctl(req, ino, cmd, arg, fi, flags, in, in_size, out_size);
	else
		wfs_op_ioctl(req, ino, cmd, arg, fi, flags, in, in_size, out_size);
}

const struct fuse_lowlevel_ops wfs_ops = {
	.init = wfs_session_init,
	.lookup = route_lookup,
	.forget = wfs_op_forget,
	.forget_multi = wfs_op_forget_multi,
	.getattr = route_getattr,
	.setattr = route_setattr,
	.readlink = wfs_op_readlink,
	.mknod = route_mknod,
	.mkdir = route_mkdir,
	.unlink = route_unlink,
	.rmdir = route_rmdir,
	.symlink = route_symlink,
	.rename = route_rename,
	.link = route_link,
	.open = route_open,
	.create = route_create,
	.read = route_read,
	.write = wfs_op_write,
	.flush = route_flush,
	.release = route_release,
	.fsync = route_fsync,
	.fallocate = wfs_op_fallocate,
	.lseek = route_lseek,
	.copy_file_range = route_copy_file_range,
	.opendir = route_opendir,
	.readdir = route_readdir,
	.readdirplus = route_readdirplus,
	.releasedir = route_releasedir,
	.fsyncdir = route_fsyncdir,
	.statfs = wfs_op_statfs,
	.setxattr = route_setxattr,
	.getxattr = route_getxattr,
	.listxattr = route_listxattr,
	.removexattr = route_removexattr,
	.ioctl = route_ioctl,
};
