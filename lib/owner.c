#include "lib/owner.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

struct wfs_owner wfs_owner_of(int dir_fd)
{
	struct stat st;

	if (geteuid() != 0 || fstat(dir_fd, &st) != 0 || st.st_uid == 0)
		return (struct wfs_owner){ .is_other = false };
	return (struct wfs_owner){ .is_other = true, .uid = st.st_uid, .gid = st.st_gid };
}

void wfs_owner_give(const struct wfs_owner *owner, int dir_fd, const char *name)
{
	if (owner->is_other && fchownat(dir_fd, name, owner->uid, owner->gid, AT_SYMLINK_NOFOLLOW) != 0)
		return;
}

void wfs_owner_inherit(int dir_fd, const char *name)
{
	const struct wfs_owner owner = wfs_owner_of(dir_fd);

	wfs_owner_give(&owner, dir_fd, name);
}
