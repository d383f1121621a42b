/* listdir.h - the names in a directory of the disk. */
#ifndef WFS_LISTDIR_H
#define WFS_LISTDIR_H

#include "lib/base.h"

/*
 * Call `fn` for each name but "." and ".." in the directory `path` below at_fd, in any order, until it
 * returns something else than 0, which is returned. dir_fd is the directory's own, and borrowed. Where
 * names come or go meanwhile, some of these may be left out, or come although they are gone.
 * -errno also where the directory cannot be opened (-ENOTDIR or -ELOOP where it is something else, as
 * a symbolic link) or not be read to its end.
 */
int wfs_listdir(int at_fd, const char *path, int (*fn)(void *ctx, int dir_fd, const char *name),
	void *ctx);

#endif
