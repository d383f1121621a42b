/*
 * owner.h - what root makes in another user's store is that user's.
 *
 * Root may mount, check or repair a store of anybody (on a machine that serves, say). Files of root in it,
 * for their owner alone as all are, would keep the store's own user out of it afterwards.
 */
#ifndef WFS_OWNER_H
#define WFS_OWNER_H

#include <sys/types.h>

#include "lib/base.h"

struct wfs_owner {
	bool is_other; /* than who makes files here, and files can be given to it */
	uid_t uid;
	gid_t gid;
};

/* Of this directory. Where it cannot be told: nobody else. */
struct wfs_owner wfs_owner_of(int dir_fd);
/*
 * What was just made, to the owner: `name` in dir_fd, itself if it is a symlink. That it cannot be given (a user
 * namespace without that user) is no error: it serves whoever made it.
 */
void wfs_owner_give(const struct wfs_owner *owner, int dir_fd, const char *name);
/* The same, to the owner of directory dir_fd that it was made in. */
void wfs_owner_inherit(int dir_fd, const char *name);

#endif
