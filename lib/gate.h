/*
 * gate.h - what a file whose name ends in ".safetensors" is held to.
 *
 * Only headers are read. The verdict goes to the inode (verdict, reason,
 * detail), where user.weightfs.error and weightfs status find it.
 */
#ifndef WFS_GATE_H
#define WFS_GATE_H

#include "lib/base.h"
#include "lib/err.h"
#include "lib/file.h"
#include "lib/name.h"

/* Does the gate apply to a file of this name? ".safetensors" alone does not. */
bool wfs_gate_name(const char *name);

/*
 * Judge the bytes of `f` as they are now and record the verdict on the inode.
 * Empty files and git-lfs pointers are OPAQUE. *err says why where the verdict
 * is INCOMPLETE or WRONG. 0, or -errno if it could not be read.
 */
int wfs_gate_judge(struct wfs_file *f, enum wfs_verdict *ret, struct wfs_err *err);

/*
 * close(2) of a handle that wrote: judges if any name of the inode is gated,
 * else forgets a verdict on bytes that were changed since. -EBADMSG as the store's `validate` says.
 */
int wfs_gate_close(struct wfs_store *s, struct wfs_file *f, struct wfs_err *err);

/*
 * Before rename(2) or link(2) gives the inode behind (parent, name) the name
 * `new_name` in new_parent. -EBADMSG if that would break the promise: another
 * kind of name becomes a shard's name and the file is wrong or incomplete, or
 * a shard that is not wrong would be replaced by one that is.
 */
int wfs_gate_rename(struct wfs_store *s, uint64_t parent, const char *name, uint64_t new_parent,
	const char *new_name, unsigned flags, struct wfs_err *err);
int wfs_gate_link(struct wfs_store *s, uint64_t ino, const char *new_name, struct wfs_err *err);

#endif
