/*
 * inode.h - which inodes the kernel knows, and how often it was told of them.
 *
 * The kernel counts the entries that name an inode and gives counts back with
 * FORGET. An inode without a name (nlink 0) is dropped from the store when the
 * count is back at 0: until then somebody may have it open. Unmounting sends no
 * FORGET; what is left then is the store's to drop (lib/recover.h).
 *
 * Any thread; the lock is the table's own and the last of all.
 */
#ifndef WFS_INODE_H
#define WFS_INODE_H

#include <pthread.h>

#include "lib/base.h"
#include "lib/table.h"

/* Where a file stands, or stood, in a .tensors: fs/scratch.h. */
struct wfs_tensor_place {
	uint64_t dir;  /* the model directory */
	char *variant; /* NULL: none */
	char *name;    /* of the file */
};

void wfs_tensor_place_release(struct wfs_tensor_place *p);

struct wfs_inodes {
	pthread_mutex_t lock;
	struct wfs_table table; /* of struct inode; under lock */
};

int wfs_inodes_init(struct wfs_inodes *t);
void wfs_inodes_release(struct wfs_inodes *t);

/* The kernel is about to be told of the inode. -ENOMEM. */
int wfs_inodes_lookup(struct wfs_inodes *t, uint64_t ino);
/* Take n counts back. True if the inode is gone and nobody knows it any more. */
bool wfs_inodes_forget(struct wfs_inodes *t, uint64_t ino, uint64_t n);
/* The kernel knows it by a name in .tensors. */
void wfs_inodes_set_tensor(
	struct wfs_inodes *t, uint64_t ino, uint64_t dir, const char *variant, const char *name);
/* 1 with a copy, to be released; 0 if it never stood there; -ENOMEM. */
int wfs_inodes_get_tensor(struct wfs_inodes *t, uint64_t ino, struct wfs_tensor_place *ret);
/* Pages of it that the kernel has cached, or may have, cannot be read any more (damage). */
void wfs_inodes_set_stale(struct wfs_inodes *t, uint64_t ino);
/* Were they, since the last call? */
bool wfs_inodes_take_stale(struct wfs_inodes *t, uint64_t ino);
/* It has no name any more (or again, with `gone` false). True as forget. */
bool wfs_inodes_set_gone(struct wfs_inodes *t, uint64_t ino, bool gone);

#endif
