/*
 * target.h - what a user means by STORE, DIR, STORE:PATH or DIR:PATH.
 *
 * A store is a directory that holds weightfs.db. A path inside a mount of
 * weightfs means the store behind it and the path in that store. Which
 * directories are mounts is read from /proc/self/mountinfo, so that a mount
 * whose driver hangs or is gone can be found, too.
 */
#ifndef WFS_TOOLS_TARGET_H
#define WFS_TOOLS_TARGET_H

#include "lib/base.h"

#define TARGET_FSTYPE "fuse.weightfs"

/* One line of /proc/self/mountinfo, its octal escapes decoded. All strings are owned. */
struct target_mount {
	char *device;     /* "major:minor"; binds of one mount share it */
	char *root;       /* directory in the mounted file system; "/" but for binds */
	char *mountpoint; /* absolute */
	char *fstype;
	char *source;     /* of weightfs: the store's absolute path */
};

struct target_mounts {
	struct target_mount *list; /* in order of mounting */
	size_t n, room;
};

/* Read them all. 0, or 1 with the error printed. target_mounts_release in any case. */
int target_mounts_read(struct target_mounts *ret);
void target_mounts_release(struct target_mounts *m);

/*
 * The mount that the absolute path `path` is in: the last one of those whose
 * mount point is its longest prefix. NULL: none. Borrowed.
 */
const struct target_mount *target_mounts_of_path(const struct target_mounts *m, const char *path);

/* The last mount of the store at the absolute path `store`, or NULL. Borrowed. */
const struct target_mount *target_mounts_of_store(const struct target_mounts *m, const char *store);

/*
 * `path` made absolute, without symbolic links as far as they can be followed;
 * works for a mount point whose driver is gone. The caller frees.
 */
char *target_absolute(const char *path);

struct target {
	char *store;      /* absolute path of the store */
	char *path;       /* in the store, begins with '/' */
	char *mountpoint; /* where the store is mounted; NULL: nowhere that can be seen from here */
};

/*
 * Find out what `text` means. 0; or 1 with the error printed. A path or
 * directory that is there as it is written goes before one cut at a colon.
 */
int target_resolve(const char *text, struct target *ret);
void target_release(struct target *t);

#endif
