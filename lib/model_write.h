/*
 * model_write.h - tensors that are put into a model, and taken out of it, one by one.
 *
 * A tensor is put by a file that has its bytes (npy, or safetensors with one tensor). The
 * call that puts it writes one row (table tensor) and returns: from then on it is
 * the model's, whatever happens to the process. The shards of the directory are made
 * anew when wfs_model_settle is called, once for all that was put and removed since:
 * whoever wants to see a shard or the index, or to change the names of the directory,
 * calls it first. So ten thousand tensors cost ten thousand rows and one set of shards.
 *
 * Settling copies no tensor: new headers, new manifests of the objects that there are, new
 * inodes under the names of the shards, the index, all in one transaction. Who has an
 * old shard open goes on reading the old bytes. Where the directory has a limit
 * (user.weightfs.max_shard_size) all tensors are planned again by lib/shard_plan.h, in
 * file order with new ones behind; without one each tensor stays in the shard that it is in, and
 * new ones go into the last, as far as the store's limit allows.
 *
 * Any thread. One settling at a time in a store; its lock (docs/locking.md) is above all others
 * here.
 */
#ifndef WFS_MODEL_WRITE_H
#define WFS_MODEL_WRITE_H

#include "lib/model.h"

/* Which tensor is meant. */
struct wfs_model_name {
	uint64_t dir;
	const char *variant; /* NULL: none */
	const char *tensor;  /* UTF-8, tensor_len bytes */
	size_t tensor_len;
};

/* Inodes that have lost their last name: the caller's, to be dropped when nobody knows them
 * (wfs_name_drop). */
struct wfs_gone {
	uint64_t *inos; /* to be freed */
	size_t n, room;
};

/*
 * The file `ino` (regular, without a name, or one that it was put under before) is the tensor.
 * In big-endian or Fortran order its bytes are converted into another file, and `ino` is gone.
 * -EINPROGRESS, with a reason: an npy file that has its header and no data yet. -ENOENT: the directory was removed.
 * -EBADMSG with a reason: it is no such file (npy-…, what lib/safetensors.h has, tensor-count,
 * tensor-name); -EBUSY with a reason: the directory has shards that are left out (lib/model.h),
 * which would be replaced. Nothing has changed then.
 */
int wfs_model_put(struct wfs_store *s, const struct wfs_model_name *name, enum wfs_tensor_form form,
	uint64_t ino, struct wfs_gone *gone, struct wfs_err *err);

/* Take it out. -ENOENT, -EBUSY as above. */
int wfs_model_remove(struct wfs_store *s, const struct wfs_model_name *name, struct wfs_gone *gone,
	struct wfs_err *err);

/*
 * A new file without a name that has the tensor in this form, and shares its bytes: to be put
 * under another name, or to be written. *ret its inode, nlink 0. -ENOENT, -EBUSY as above, -EOPNOTSUPP (npy has
 * no such dtype). Settles first. `new`: whose file it is.
 */
int wfs_model_clone(struct wfs_store *s, const struct wfs_model_name *name,
	enum wfs_tensor_form form, const struct wfs_new *new, uint64_t *ret, struct wfs_gone *gone,
	struct wfs_err *err);

enum wfs_pending {
	WFS_PENDING_NOT, /* as in the shards */
	WFS_PENDING_PUT, /* *ret_ino, *ret_form: the file that was put */
	WFS_PENDING_REMOVED,
};

/* What waits for this tensor: one of the above, or -errno. */
int wfs_model_pending(struct wfs_store *s, const struct wfs_model_name *name, uint64_t *ret_ino,
	enum wfs_tensor_form *ret_form);
/*
 * Of which tensor is this the file that was put? 1 with *ret, whose strings are *ret_strings,
 * to be freed; 0 if of none.
 */
int wfs_model_pending_file(struct wfs_store *s, uint64_t ino, struct wfs_model_name *ret,
	enum wfs_tensor_form *ret_form, char **ret_strings);
/* Does anything wait in this directory, or may it, as far as can be found out? A few instructions where nothing waits in the store. */
bool wfs_model_is_pending(struct wfs_store *s, uint64_t dir);

/*
 * Make the shards of a directory what was put and removed. What is written at this moment, or
 * was put by a file that somebody still writes, waits on. 0 also where there is nothing to do;
 * -EBUSY with a reason: shards are left out, or somebody writes one; everything waits on.
 */
int wfs_model_settle(struct wfs_store *s, uint64_t dir, struct wfs_gone *gone, struct wfs_err *err);
/* All of them; for the background and the unmount. */
int wfs_model_settle_all(struct wfs_store *s, struct wfs_gone *gone);

/* Plan all shards of a directory again, by the limit that it has now. */
int wfs_model_reshard(
	struct wfs_store *s, uint64_t dir, struct wfs_gone *gone, struct wfs_err *err);

/* Bytes of a shard where neither the directory (WFS_XATTR_MAX_SHARD_SIZE) nor the store says so. */
#define WFS_DEFAULT_SHARD_SIZE UINT64_C(50000000000)

#endif
