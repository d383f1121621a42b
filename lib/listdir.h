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

/*
 * Has the directory itself a name that is not of `is_own`? 1 with one of them, of up to NAME_MAX bytes
 * and a NUL; 0; -errno as above.
 */
int wfs_listdir_other(int dir_fd, bool (*is_own)(const char *name), char *ret_name);

#endif
